"""Shell scripts that hosts run: one prepares a host, one trains and restarts."""

import shlex

from dynexit.runs.launch.job import CACHE, Job, python_version, train_words

MOUNTED = "$HOME/storage"
FUSE = (
    "--implicit-dirs --rename-dir-limit 100000 "
    "--metadata-cache-ttl-secs 0 --metadata-cache-negative-ttl-secs 0"
)
"""A host sees at once what another wrote, and folders can be renamed."""


def setup_script(storage: str, setup: str | None) -> str:
    """A script that prepares a host: the shared folder, Python, the pinned packages.

    Args:
      storage: `gs://BUCKET/FOLDER`, mounted by Cloud Storage FUSE; `HOST:/SHARE`, mounted by NFS;
        or a folder that the hosts have already.
      setup: the user's command.
    """
    return f"""\
#!/usr/bin/env bash
# Prepares a host: the folder that the hosts share, Python, the packages of requirements.txt.
set -euo pipefail
cd "$(dirname "$0")"
{_mount(storage)}
if [ ! -x environment/bin/dynexit ]; then
  export PATH="$HOME/.local/bin:$PATH"
  command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  uv venv --quiet --python {python_version()} environment
  uv pip install --quiet --python environment/bin/python -r requirements.txt
fi
{_own(setup)}"""


HEAD = """\
#!/usr/bin/env bash
# Trains on this host. Exit codes of 128 and more are those of a process that was stopped by a
# signal (143) or lost a peer (142): it resumes from its newest checkpoint. 1 and 2 are errors.
cd "$(dirname "$0")"
"""
ONCE = """\
exec 9>lock
flock -n 9 || exit 0 # it runs already
echo $$ >pid
rm -f exit_code
"""
SHOWN = """\
: >train.log
tail -n +1 -F train.log &
shows=$!
"""


def train_script(
    job: Job, shared: str, restarts: int, flags: str = "", detached: bool = True
) -> str:
    """A script that trains, and starts again when the process was stopped or lost a peer.

    The output of training goes to `train.log` by redirection.

    Args:
      job: the job.
      shared: the folder of the runs as a host sees it; the shell expands its variables.
      restarts: starts after the first.
      flags: further options of `dynexit train`; the shell expands their variables.
      detached: whether nobody waits for the script: it then refuses a second start beside itself
        and leaves its last exit code in `exit_code`. Otherwise it shows the log, and ends with
        that code.
    """
    words = shlex.join(train_words(job, "RUN", "CACHE")[:-4])
    code = 'echo "$code" >exit_code' if detached else 'sleep 1\nkill "$shows"\nexit "$code"'
    return f"""\
{HEAD}{ONCE if detached else SHOWN}for restart in $(seq 0 {restarts}); do
  environment/bin/dynexit {words} \\
    --run "{shared}/{job.name}" --cache "{shared}/{CACHE}"{flags and f" {flags}"} \\
    >>train.log 2>&1
  code=$?
  echo "exit code $code, restart $restart of {restarts}" >>train.log
  if [ "$code" -lt 128 ]; then break; fi
  sleep 10
done
{code}
"""


def folder_on_host(storage: str) -> str:
    """The folder of the runs as a host sees it."""
    if storage.startswith("gs://"):
        _, _, folder = storage.removeprefix("gs://").rstrip("/").partition("/")
        return f"{MOUNTED}/{folder}" if folder else MOUNTED
    return MOUNTED if ":" in storage else storage.rstrip("/")


def _mount(storage: str) -> str:
    if storage.startswith("gs://"):
        bucket = storage.removeprefix("gs://").partition("/")[0]
        return f"""\
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
mkdir -p "{MOUNTED}"
mountpoint -q "{MOUNTED}" ||
  gcsfuse {FUSE} {bucket} "{MOUNTED}"
mkdir -p "{folder_on_host(storage)}"
"""
    if ":" in storage:
        return f"""\
command -v mount.nfs >/dev/null ||
  {{ sudo apt-get -qq -o DPkg::Lock::Timeout=600 update &&
    sudo apt-get -qq -o DPkg::Lock::Timeout=600 install -y nfs-common; }}
mkdir -p "{MOUNTED}"
mountpoint -q "{MOUNTED}" || sudo mount -t nfs {shlex.quote(storage)} "{MOUNTED}"
"""
    return f"mkdir -p {shlex.quote(storage)}\n"


def _own(setup: str | None) -> str:
    return f'export PATH="$PWD/environment/bin:$PATH"\n{setup}\n' if setup else ""
