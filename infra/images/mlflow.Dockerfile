# syntax=docker/dockerfile:1
# The MLflow server with basic auth, on PostgreSQL, its artifacts proxied. Build it in the root of
# the repository: docker build -f infra/images/mlflow.Dockerfile .
#
# PGHOST, PGUSER, PGDATABASE and PGPASSWORD say where the database is (libpq's own variables, so
# that no password is ever in a command line); MLFLOW_FLASK_SERVER_SECRET_KEY, and at the first
# start MLFLOW_AUTH_ADMIN_PASSWORD, have no default: without them the server does not start.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm

COPY infra/constraints.txt infra/images/mlflow_auth.ini /opt/mlflow/
# The versions are the constraints'. psycopg is SQLAlchemy's driver for PostgreSQL, boto3 is for
# artifacts in S3.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --constraint /opt/mlflow/constraints.txt \
        "mlflow[auth]" "psycopg[binary]" boto3 \
    && useradd --create-home --uid 1000 mlflow \
    && install --directory --owner mlflow --group mlflow /artifacts

# Jobs would be seven more processes; nothing here uses them. MLFLOW_ARTIFACTS_DESTINATION may be
# an s3:// address instead: only the server then needs the keys, neither drivers nor workers.
ENV MLFLOW_AUTH_CONFIG_PATH=/opt/mlflow/mlflow_auth.ini \
    MLFLOW_ARTIFACTS_DESTINATION=/artifacts \
    MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
    MLFLOW_DISABLE_TELEMETRY=true
USER 1000:1000
WORKDIR /home/mlflow
EXPOSE 5000
# It listens on every interface of its container; who gets there is decided outside. The hosts are
# the names under which drivers and people call it; any other Host header is refused.
CMD ["mlflow", "server", "--app-name", "basic-auth", "--host", "0.0.0.0", "--port", "5000", \
     "--workers", "2", "--backend-store-uri", "postgresql:///mlflow", "--serve-artifacts", \
     "--allowed-hosts", "mlflow:5000,localhost:5000,127.0.0.1:5000"]
