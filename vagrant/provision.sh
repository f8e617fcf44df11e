#!/bin/sh
# Makes hosts ready, from the client, as root: everything that a person would type. Run by Vagrant and, in the virtual
# machines of the lab, by tests/vm. Twice changes nothing.
# usage: provision.sh CHECKOUT HOST...
set -eu
checkout=$1
shift

if [ -e /tmp/key ]; then
    install -D -m 0600 /tmp/key /root/.ssh/id_ed25519
    rm /tmp/key
fi
if ! command -v phaul >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -y -q --no-install-recommends python3-venv nftables
    python3 -m venv /opt/phaul-here
    /opt/phaul-here/bin/pip install --quiet "$checkout"
    ln -sf /opt/phaul-here/bin/phaul /usr/local/bin/phaul
fi
[ -e /var/lib/phaul/trust/list.json ] || phaul trust init "$(hostname)"
for host in "$@"; do
    # Machines that were made a moment ago, on a network of their own.
    phaul host add "root@$host" --accept-new-host-key
done
