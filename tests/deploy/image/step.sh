# One RUN of a build stage, as `unshare --mount --pid --fork` starts it: every mount ends with it.
#
# $1 the place: `upper`, `work` and `root` of the overlay on $2, the base; $3 the toolchain of this machine; $4 the working directory;
# $5 the command; then the cache mounts as SOURCE=TARGET, `--`, and the environment as NAME=VALUE.
set -eu
root=$1/root
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"

# As an engine gives a container the machine's resolver. The authorities are the machine's too: what stands between it and the
# registries may have one of its own.
cp /etc/resolv.conf "$root/etc/resolv.conf"
mount --bind /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"

toolchain=$root/usr/local/rustup/toolchains/here
mkdir -p "$toolchain" "$root/usr/local/cargo"
ln -sfn ../rustup/toolchains/here/bin "$root/usr/local/cargo/bin"
mount --bind "$3" "$toolchain"
mount -o remount,bind,ro "$toolchain"

directory=$4 command=$5
shift 5
while [ "$1" != -- ]; do
  mkdir -p "$root${1#*=}"
  mount --bind "${1%%=*}" "$root${1#*=}"
  shift
done
shift
exec env -i "$@" unshare --root="$root" --wd="$directory" /bin/sh -c "$command"
