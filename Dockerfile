# CPU image: docker build -t compress . && docker run --rm -v "$PWD/runs:/work/runs" compress --target raspberrypi
# Its tests: docker build --target test -t compress-test . && docker run --rm compress-test
FROM python:3.11-slim AS base

# ssh: boards are measured through the system's OpenSSH; mount ~/.ssh read-only for it
RUN apt-get update && apt-get install -y --no-install-recommends openssh-client && rm -rf /var/lib/apt/lists/*

# pip's own name: give the index of torch's CPU builds here to leave gigabytes of GPU libraries out of the image
ARG PIP_EXTRA_INDEX_URL

RUN useradd --create-home --uid 1000 compress && mkdir /work && chown compress /work
COPY --chown=compress . /src
RUN pip install --no-cache-dir /src

FROM base AS test
RUN apt-get update && apt-get install -y --no-install-recommends openssh-server && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir -e '/src[dev]'
# as root, which alone may start the ssh server that some tests need
WORKDIR /src
CMD ["pytest", "-q", "-n", "2", "--dist", "loadfile"]

FROM base
USER compress
WORKDIR /work
ENTRYPOINT ["compress"]
CMD ["--help"]
