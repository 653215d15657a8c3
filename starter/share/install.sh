#!/bin/sh
# Installs start_server from this folder of the sources, where no package fits:
#
#     cargo build --release --locked
#     starter/share/install.sh PREFIX [DESTDIR]
#
# PREFIX is where it is to live, such as /usr/local or $HOME/.local. With DESTDIR, everything is put below that folder
# instead, as packagers need it. An existing binder.conf is left alone; it is /etc/start_server/binder.conf wherever
# PREFIX is, because the binder reads no other, so only root installs it. Nothing gets a capability or a setuid bit.
# `BUILD=target/TRIPLE/release` takes the programs from another folder.
set -eu

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

[ $# = 1 ] || [ $# = 2 ] || fail "usage: install.sh PREFIX [DESTDIR]"
prefix=${1%/} destdir=${2-}
case "$prefix" in
/*) ;;
*) fail "cannot install to '$1': PREFIX must be an absolute path other than /" ;;
esac
case "$prefix" in
*[!A-Za-z0-9/._+-]*) fail "cannot install to '$1': a unit or a manual cannot name such a path" ;;
esac
share=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$share/../.." && pwd)
build=${BUILD:-${CARGO_TARGET_DIR:-$top/target}/release}
for program in start_server start_server-binder; do
    [ -f "$build/$program" ] ||
        fail "cannot find $build/$program: build it with \`cargo build --release --locked\`, or set BUILD to its folder"
done

# put MODE SOURCE TARGET: installs a file and says so. The old file is replaced, not written to, for it may be running.
put() {
    install -d "$destdir$(dirname "$3")" || fail "cannot create $destdir$(dirname "$3")"
    install -m "$1" "$2" "$destdir$3.new" || fail "cannot write $destdir$3.new"
    mv -f "$destdir$3.new" "$destdir$3" || fail "cannot replace $destdir$3"
    echo "installed $destdir$3"
}

# put_adapted SOURCE TARGET: the same for a file that names the programs.
put_adapted() {
    text=$(mktemp) || fail "cannot make a temporary file"
    sed -e "s|^\(Exec[A-Za-z]*=+\{0,1\}\)start_server |\1$prefix/bin/start_server |" \
        -e "s|/usr/bin/start_server-binder|$prefix/bin/start_server-binder|" "$1" >"$text" || fail "cannot read $1"
    (put 644 "$text" "$2") || { rm -f "$text"; exit 1; }
    rm -f "$text"
}

# The binder first: start_server never is without one that speaks its language for longer than it takes to rename.
put 755 "$build/start_server-binder" "$prefix/bin/start_server-binder"
put 755 "$build/start_server" "$prefix/bin/start_server"

for page in "$share"/man/*.[1-8]; do
    [ ! -f "$page" ] || put 644 "$page" "$prefix/share/man/man${page##*.}/${page##*/}"
done
while read -r file target; do
    [ ! -f "$share/completions/$file" ] || put 644 "$share/completions/$file" "$prefix/share/$target"
done <<'END'
start_server.bash bash-completion/completions/start_server
_start_server zsh/site-functions/_start_server
start_server.fish fish/vendor_completions.d/start_server.fish
END

put_adapted "$share/systemd/start_server@.service" "$prefix/lib/systemd/system/start_server@.service"
for unit in "$share"/systemd/app*; do
    put_adapted "$unit" "$prefix/share/doc/start_server/systemd/${unit##*/}"
done

policy=/etc/start_server/binder.conf
if [ -z "$destdir" ] && [ "$(id -u)" != 0 ]; then
    put_adapted "$share/binder.conf" "$prefix/share/doc/start_server/binder.conf"
    echo "left out $policy: only root installs it, from $prefix/share/doc/start_server/binder.conf"
elif [ -e "$destdir$policy" ]; then
    put_adapted "$share/binder.conf" "$prefix/share/doc/start_server/binder.conf"
    echo "kept $destdir$policy"
else
    put_adapted "$share/binder.conf" "$policy"
fi

# systemd knows these places and no others.
case "$prefix" in
/usr | /usr/local) ;;
*) echo "systemd does not look in $prefix/lib/systemd/system: copy or link the unit to /etc/systemd/system" ;;
esac
echo "start_server --self-test shows what holds on this host; no file was given a capability"
