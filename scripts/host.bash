# What quickstart, test and bench ask of the host they run on. Sourced, never run.
# Needs: bash 5, Debian's tools. Every function says what it changes.

if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
    bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' yellow=$'\e[33m' plain=$'\e[0m'
else
    bold='' dim='' red='' green='' yellow='' plain=''
fi

step() { printf '%s==>%s %s%s%s\n' "$green" "$plain" "$bold" "$*" "$plain"; }
note() { printf '    %s\n' "$*"; }
warn() { printf '%swarning:%s %s\n' "$yellow" "$plain" "$*" >&2; }
die() {
    printf '%serror:%s %s\n' "$red" "$plain" "$*" >&2
    exit 1
}

is_root() { [[ $EUID -eq 0 ]]; }

# missing_packages NAME...: prints those that are not installed.
missing_packages() {
    local name
    for name; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null) == installed ]] || echo "$name"
    done
}

# install_packages NAME...: installs what is missing; without root, says what an admin must run.
install_packages() {
    local missing try
    mapfile -t missing < <(missing_packages "$@")
    ((${#missing[@]})) || return 0
    if ! is_root; then
        die "missing packages; an admin must run: apt-get install ${missing[*]}"
    fi
    note "installing ${missing[*]}"
    for try in 1 2 3; do
        # The package lists of a fresh machine are empty or old; a mirror may hiccup.
        if apt-get update -qq >/dev/null &&
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
                -o DPkg::Lock::Timeout=120 "${missing[@]}" >/dev/null </dev/null; then
            return 0
        fi
        warn "apt-get failed (try $try of 3)"
        sleep $((try * 3))
    done
    die "could not install ${missing[*]}"
}

# find_cargo: puts cargo on PATH.
find_cargo() {
    command -v cargo >/dev/null && return 0
    local home
    home=$(getent passwd "$EUID" | cut -d: -f6)
    PATH="${CARGO_HOME:-$home/.cargo}/bin:$PATH"
    command -v cargo >/dev/null || die "cargo not found: install Rust $(rust_version) or newer (rustup.rs), then run this again"
}

# rust_version: the oldest Rust the workspace builds with.
rust_version() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "$checkout/Cargo.toml"; }

# target_dir: where cargo builds.
target_dir() { echo "${CARGO_TARGET_DIR:-$checkout/target}"; }

# build_selkie PROFILE: builds the binary with this cargo profile (release is what is shipped) and prints
# its path. Linked statically and at a fixed address: that saves the dynamic loader's work, a
# millisecond of every start, and lets one binary run on every distribution. With --target, since
# proc macros of the build itself cannot be linked so.
build_selkie() {
    local host messages
    host=$(rustc -vV | sed -n 's/^host: //p')
    messages=$(cd "$checkout" &&
        RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" \
            cargo build --quiet --locked --profile "$1" --target "$host" --bin selkie \
            --message-format json-render-diagnostics) || return 1
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' <<<"$messages" | tail -n 1
}

# open_device NODE MAJOR MINOR: makes a character device usable by every login, as distributions
# ship it. Returns 1 when it is not usable and may not be made so.
open_device() {
    local node=$1 major=$2 minor=$3
    if is_root; then
        [[ -e $node ]] || { mkdir -p "$(dirname "$node")" && mknod "$node" c "$major" "$minor"; } || return 1
        [[ $(stat -c %a "$node") == 666 ]] || { note "chmod 0666 $node (as distributions ship it)" && chmod 0666 "$node"; }
    else
        [[ -r $node && -w $node ]]
    fi
}

# subid_ranges USER FILE: prints START COUNT of each range of the user in /etc/subuid or /etc/subgid.
subid_ranges() {
    local uid
    uid=$(id -u "$1")
    awk -F: -v user="$1" -v uid="$uid" '$1 == user || $1 == uid { print $2, $3 }' "$2" 2>/dev/null || true
}

# give_subids USER: a range of 65,536 subordinate UIDs and GIDs after everyone else's, unless there
# is one. Needs root.
give_subids() {
    local user=$1 file start
    for file in /etc/subuid /etc/subgid; do
        [[ -z $(subid_ranges "$user" "$file") ]] || continue
        start=$(awk -F: 'BEGIN { end = 100000 } NF == 3 && $2 + $3 > end { end = $2 + $3 } END { print end }' \
            /etc/subuid /etc/subgid 2>/dev/null)
        note "giving $user the IDs $start-$((start + 65535)) in $file"
        if [[ $file == /etc/subuid ]]; then
            usermod --add-subuids "$start-$((start + 65535))" "$user"
        else
            usermod --add-subgids "$start-$((start + 65535))" "$user"
        fi
    done
}

# make_login NAME: an ordinary user with a home and subordinate IDs. Needs root.
make_login() {
    if ! id "$1" >/dev/null 2>&1; then
        note "creating the user $1"
        local try
        for try in 1 2 3 4 5; do
            # Somebody else may hold the lock of /etc/passwd.
            if useradd --create-home --shell /bin/bash "$1"; then break; fi
            ((try < 5)) || die "could not create the user $1"
            sleep 1
        done
    fi
    give_subids "$1"
}

# as_login USER COMMAND...: runs as that user with its groups, a clean environment and no session,
# as after `su` or in a cron job. NAME=VALUE words may stand before the command.
as_login() {
    local user=$1 home
    shift
    home=$(getent passwd "$user" | cut -d: -f6)
    if [[ $(id -u "$user") -eq $EUID ]]; then
        (cd "$home" && env "$@")
        return
    fi
    # --reset-env gives HOME, SHELL, USER, LOGNAME and a plain PATH.
    (cd "$home" && setpriv --reuid "$user" --regid "$(id -g "$user")" --init-groups --reset-env env "$@")
}

# processes_of USER: PIDs owned by the user or one of its subordinate UIDs.
processes_of() {
    local uid
    uid=$(id -u "$1" 2>/dev/null) || return 0
    {
        echo "$uid 1"
        subid_ranges "$1" /etc/subuid
        echo --
        ps -eo uid=,pid=
    } | awk '$1 == "--" { lists = 1; next }
        !lists { first[++n] = $1; count[n] = $2; next }
        { for (i = 1; i <= n; i++) if ($1 >= first[i] && $1 < first[i] + count[i]) { print $2; break } }'
}

# remove_login USER: ends its processes (its containers' too) and removes it with its home. Needs root.
remove_login() {
    local pids try
    id "$1" >/dev/null 2>&1 || return 0
    for try in 1 2 3 4 5 6 7 8 9 10; do
        mapfile -t pids < <(processes_of "$1")
        ((${#pids[@]})) || break
        kill -KILL "${pids[@]}" 2>/dev/null || true
        sleep 0.2
    done
    userdel --remove "$1" 2>/dev/null || userdel "$1" || true
}
