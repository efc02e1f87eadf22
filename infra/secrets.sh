#!/usr/bin/env bash
# Make the secrets of a cluster, once: random, in a file that git never sees and only you can read.
# One file serves compose and Kubernetes alike; `auth_token` is spelt as KubeRay asks for it.
set -euo pipefail
file="${1:-$(dirname "$0")/secrets.env}"
if [ -e "$file" ]; then
  echo "$file is there already; whoever wants new secrets removes it first" >&2
  exit 1
fi
umask 077
trap 'rm -f "$file.new"' EXIT
for name in POSTGRES_PASSWORD MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY auth_token; do
  secret="$(openssl rand -hex 32)"
  printf '%s=%s\n' "$name" "$secret"
done > "$file.new"
mv "$file.new" "$file"
echo "wrote $file"
