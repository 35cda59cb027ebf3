# A command in the last stage's root, as `unshare --mount --pid --fork` starts it: process 1, no rights, and nothing to write to
# but what is mounted. Its network is the machine's.
#
# $1 the layers, the last first, as overlayfs wants them; $2 an empty directory; then the mounts as SOURCE=TARGET, `--`, the environment
# as NAME=VALUE, and the command as `unshare` takes it.
set -eu
layers=$1 root=$2
shift 2
mount -t overlay overlay -o "ro,lowerdir=$layers" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
while [ "$1" != -- ]; do
  mount --bind "${1%%=*}" "$root${1#*=}"
  shift
done
shift
exec env -i "$@"
