# CPU image: docker build -t compress . && docker run --rm -v "$PWD/runs:/work/runs" compress --target raspberrypi
FROM python:3.11-slim

# ssh: boards are measured through the system's OpenSSH; mount ~/.ssh read-only for it
RUN apt-get update && apt-get install -y --no-install-recommends openssh-client && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 compress && mkdir /work && chown compress /work
COPY --chown=compress . /src
RUN pip install --no-cache-dir /src && rm -rf /src

USER compress
WORKDIR /work
ENTRYPOINT ["compress"]
CMD ["--help"]
