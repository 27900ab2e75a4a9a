# The `mqauth` command as an image; docs/how-to/run-in-containers.md says how to use it.
FROM python:3.13-slim-trixie AS build
WORKDIR /source
COPY requirements-image.lock pyproject.toml README.md LICENSE ./
RUN python -m venv /opt/mqauth \
    && /opt/mqauth/bin/pip install --no-cache-dir --require-hashes -r requirements-image.lock
COPY mqauth ./mqauth
RUN /opt/mqauth/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
    && /opt/mqauth/bin/pip uninstall --yes hatchling pip

FROM python:3.13-slim-trixie
COPY --from=build /opt/mqauth /opt/mqauth
RUN install --directory --owner=10001 --group=10001 --mode=0700 /data
# Nothing is written but below /data, so that the root file system can be read-only.
ENV PATH=/opt/mqauth/bin:$PATH HOME=/data PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /data
VOLUME /data
# Only what serves can be asked: MQAUTH_HEALTH says where, for example http://127.0.0.1:8080/healthz of `keys serve`.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["sh", "-c", "test -z \"$MQAUTH_HEALTH\" || mqauth health"]
ENTRYPOINT ["mqauth"]
CMD ["--help"]
