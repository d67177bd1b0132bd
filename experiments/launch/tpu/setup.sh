#!/usr/bin/env bash
# Prepares a host: the folder that the hosts share, Python, the packages of requirements.txt.
set -euo pipefail
cd "$(dirname "$0")"
if ! command -v gcsfuse >/dev/null; then
  codename=gcsfuse-$(. /etc/os-release && echo "$VERSION_CODENAME")
  key=/usr/share/keyrings/cloud.google.asc
  curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg -o google.asc
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt $codename main" >gcsfuse.list
  sudo cp google.asc $key
  sudo cp gcsfuse.list /etc/apt/sources.list.d/gcsfuse.list
  sudo apt-get -qq -o DPkg::Lock::Timeout=600 update
  sudo apt-get -qq -o DPkg::Lock::Timeout=600 install -y gcsfuse
fi
mkdir -p "$HOME/storage"
mountpoint -q "$HOME/storage" ||
  gcsfuse --implicit-dirs --rename-dir-limit 100000 --metadata-cache-ttl-secs 0 --metadata-cache-negative-ttl-secs 0 my-bucket "$HOME/storage"
mkdir -p "$HOME/storage/runs"

if [ ! -x environment/bin/dynexit ]; then
  export PATH="$HOME/.local/bin:$PATH"
  command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  uv venv --quiet --python 3.12 environment
  uv pip install --quiet --python environment/bin/python -r requirements.txt
fi
