#!/bin/sh
# Installs OpenSSH's server where it is missing and this may: as root, on Debian and its kin. Never fails; tests over ssh start a
# server of their own on the loopback, and are skipped, with that reason, where there is none.
have() { command -v sshd >/dev/null || test -x /usr/sbin/sshd; }
have && exit 0
if test "$(id -u)" = 0 && command -v apt-get >/dev/null; then
    # the package would start its service, and nobody asked for one: a policy says no while it is set up
    policy=/usr/sbin/policy-rc.d
    if ! test -e $policy; then
        trap 'rm -f $policy' EXIT INT TERM
        printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy
    fi
    echo "installing OpenSSH's server for the tests (its service is not started)"
    install="apt-get install -q -y --no-install-recommends openssh-server openssh-client"
    export DEBIAN_FRONTEND=noninteractive
    { $install || { apt-get update -q && $install; }; } >/dev/null 2>&1
    if have && test -d /run/systemd/system; then
        systemctl -q disable ssh.service ssh.socket 2>/dev/null  # nor at the next start
    fi
fi
have || echo "no OpenSSH server here: tests over ssh are skipped (apt-get install openssh-server)"
exit 0
