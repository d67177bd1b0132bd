#!/usr/bin/env bash
# Prepares a host: the folder that the hosts share, Python, the packages of requirements.txt.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p /storage

if [ ! -x environment/bin/dynexit ]; then
  export PATH="$HOME/.local/bin:$PATH"
  command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  uv venv --quiet --python 3.12 environment
  uv pip install --quiet --python environment/bin/python -r requirements.txt
fi
