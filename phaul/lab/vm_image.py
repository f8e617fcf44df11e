"""What the lab's virtual machines start from: QEMU, a kernel, an initial file system and a root, made once and kept.

Called by `phaul.lab.cluster` and `phaul lab build`. It lies in the directory of the image that it extends
(`phaul.lab.image`), and goes with it. phaul's own source is not in it. Never changes what it extends.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from phaul.lab import building, commands, image, initramfs, recipe, records, registries, vm_recipe

PREFIX = "vm-"
DRAFT = "vm-draft"
ROOT_BYTES = 1 << 30  # sparse

# In a mount namespace of its own, so that every mount ends with it. Arguments: the lower file system, the draft, the
# kernel's version, the tools, the packages, the repository and what it offers; then paths that apt has to see.
_BUILD_ROOT = r"""set -eu
lower=$1 draft=$2 version=$3 tools=$4 packages=$5 repository=$6 offered=$7; shift 7
mount -t tmpfs -o mode=0755 mnt "$draft/mnt"
mkdir "$draft/mnt/upper" "$draft/mnt/work" "$draft/mnt/root" "$draft/mnt/image"
root=$draft/mnt/root
mount -t overlay -o "lowerdir=$lower,upperdir=$draft/mnt/upper,workdir=$draft/mnt/work" root "$root"
cp -a --remove-destination "$draft/files/." "$root/"
(
    # A namespace once more: what is shown to apt must not get into the image.
    unshare --mount --propagation private -- /bin/sh -eu -c '
        root=$1 packages=$2 repository=$3 offered=$4; shift 4
        mount -t proc proc "$root/proc"
        for path; do
            if [ -d "$path" ]; then mkdir -p "$root$path"; else touch "$root$path"; fi
            mount --rbind "$path" "$root$path"
        done
        chroot "$root" apt-get update
        chroot "$root" apt-get install -y $packages
        chroot "$root" sh -euc "mkdir -p $repository; cd $repository; apt-get download -qq $offered"
        chroot "$root" apt-get clean
        chroot "$root" ssh-keygen -q -t ed25519 -N "" -C lab -f /root/key
        chroot "$root" python3 -m compileall -q -j0 /opt/phaul/venv/lib || true
    ' sh "$root" "$packages" "$repository" "$offered" "$@"
)
(
    cd "$root$repository"
    for file in *.deb; do
        dpkg-deb --field "$file"
        echo "Filename: ./$file"
        echo "Size: $(stat --format %s "$file")"
        echo "SHA256: $(sha256sum "$file" | cut -d" " -f1)"
        echo
    done >Packages
)
rm -rf "$root/var/lib/apt/lists" "$root/var/cache/apt" "$root/etc/apt/apt.conf.d/zz-lab"
mkdir -p "$root/root/.ssh" "$root/usr/lib/modules"
mv "$root/root/key.pub" "$root/root/.ssh/authorized_keys"
mv "$root/root/key" "$draft/ssh-key"
chmod 700 "$root/root/.ssh"
cp -a "$tools/usr/lib/modules/$version" "$root/usr/lib/modules/"
chroot "$root" depmod "$version"
cp "$root/usr/lib/modules/$version/modules.dep" "$tools/usr/lib/modules/$version/"
truncate -s "$ROOT_BYTES" "$draft/root.ext4"
mkfs.ext4 -q -F -O ^has_journal -m 0 -d "$root" "$draft/root.ext4"
"""


@dataclass(frozen=True, slots=True)
class VmImage:
    """The directory of everything that a virtual machine starts from."""

    directory: Path

    @property
    def root(self) -> Path:
        """The root file system, ext4, never written to."""
        return self.directory / "root.ext4"

    @property
    def kernel(self) -> Path:
        """The kernel."""
        return self.directory / "kernel"

    @property
    def initramfs(self) -> Path:
        """The initial file system."""
        return self.directory / "initramfs"

    @property
    def ssh_key(self) -> Path:
        """The private key that root of each machine lets in."""
        return self.directory / "ssh-key"

    @property
    def qemu(self) -> list[str]:
        """The beginning of a command line that runs QEMU with its own libraries."""
        tools = self.directory / "tools"
        libraries = tools / "usr/lib/x86_64-linux-gnu"
        data = [word for name in ("qemu", "seabios") for word in ("-L", str(tools / "usr/share" / name))]
        loader = [str(libraries / "ld-linux-x86-64.so.2"), "--inhibit-cache", "--library-path", str(libraries)]
        return [*loader, str(tools / "usr/bin/qemu-system-x86_64"), *data]


def find() -> VmImage | None:
    """What the current recipes give, None when it has not been made."""
    base = image.find()
    made = VmImage(_directory(base)) if base else None
    return made if made and made.directory.is_dir() else None


def ensure(progress: building.Progress = lambda line: None) -> VmImage:
    """Give it, and make it, and the image that it extends, where they are missing."""
    base = image.ensure(progress)
    made = VmImage(_directory(base))
    if not made.directory.is_dir():
        with building.locked(image.cache_directory(), progress):
            if not made.directory.is_dir():
                _remove_old(base)
                _build(base, made, progress)
    return made


def _directory(base: Path) -> Path:
    return base / f"{PREFIX}{vm_recipe.key(base.name)}"


def _remove_old(base: Path) -> None:
    """Delete what a killed builder left, and what was made by other recipes and is in no lab's use."""
    used = {path.resolve() for path in records.images_in_use()}
    for entry in base.glob(f"{PREFIX}*"):
        if entry.resolve() not in used:
            shutil.rmtree(entry, ignore_errors=True)


def _build(base: Path, made: VmImage, progress: building.Progress) -> None:
    started = time.monotonic()
    draft = VmImage(base / DRAFT)
    draft.directory.mkdir()
    log = image.cache_directory() / "build-vm.log"
    log.unlink(missing_ok=True)
    try:
        progress(f"Getting QEMU and a kernel from Debian {vm_recipe.TOOL_SUITE}")
        tools = _get_tools(draft.directory, log)
        progress(f"Adding systemd to the hosts' Debian {recipe.SUITE}")
        version = _take_kernel(tools, draft)
        _build_root(base, draft.directory, version, tools, log)
        modules = tools / "usr/lib/modules" / version
        draft.initramfs.write_bytes(initramfs.build(tools / "usr/bin/busybox", modules))
        for spent in (modules, draft.directory / "files", draft.directory / "mnt", tools / "boot"):
            shutil.rmtree(spent)
        draft.directory.replace(made.directory)
    finally:
        shutil.rmtree(draft.directory, ignore_errors=True)
    progress(f"The virtual machines' image is ready in {made.directory} ({time.monotonic() - started:.0f} s)")


def _get_tools(draft: Path, log: Path) -> Path:
    tools = draft / "tools"
    argv = [
        commands.find("mmdebstrap"),
        "--variant=extract",
        "--mode=root",
        "--format=directory",
        *(f"--aptopt={option}" for option in building.debian_options()),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in recipe.UNPACKED_WITHOUT),
        f"--include={','.join(vm_recipe.TOOLS)}",
        vm_recipe.TOOL_SUITE,
        str(tools),
        building.debian_source(vm_recipe.TOOL_SUITE),
    ]
    building.run_logged(argv, log, _environment(), "QEMU and the kernel could not be had")
    return tools


def _take_kernel(tools: Path, draft: VmImage) -> str:
    """Put the kernel in its place and give its version."""
    (kernel,) = (tools / "boot").glob("vmlinuz-*")
    kernel.rename(draft.kernel)
    return kernel.name.removeprefix("vmlinuz-")


def _build_root(base: Path, draft: Path, version: str, tools: Path, log: Path) -> None:
    files = draft / "files"
    options = {"etc/apt/apt.conf.d/zz-lab": "\n".join(building.debian_options()) + "\n"}
    for name, content in (vm_recipe.files() | options).items():
        file = files / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        file.chmod(0o755 if content.startswith("#!") else 0o644)
    for name, target in vm_recipe.links().items():
        link = files / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    (draft / "mnt").mkdir()
    paths = registries.pip_paths("")  # certificates and name service, which apt needs as well
    arguments = [str(base / "root"), str(draft), version, str(tools), " ".join(vm_recipe.PACKAGES)]
    arguments += [vm_recipe.REPOSITORY, " ".join(vm_recipe.REPOSITORY_PACKAGES)]
    script = ["/bin/sh", "-c", _BUILD_ROOT, "build", *arguments, *map(str, paths)]
    building.run_logged(
        building.in_new_mounts(script), log, _environment(), "The virtual machines' root could not be made"
    )


def _environment() -> dict[str, str]:
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return os.environ | {"PATH": path, "DEBIAN_FRONTEND": "noninteractive", "ROOT_BYTES": str(ROOT_BYTES)}
