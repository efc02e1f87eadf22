#!/bin/sh
# Fetch what the task `speech` learns from: recorded prompts with their transcripts, and clips of
# other speakers, from Debian's packages. They are unpacked into the cache and not installed, so it
# takes no root. What is there already stays; a file that is not the one we know is refused.
#
#   infra/speech.sh            by apt-get
#   infra/speech.sh FOLDER     from .deb files that somebody has put there
#
# Recordings: CC BY-SA 3.0 (Allison Smith, Digium); LibriVox clips: public domain.
set -eu

packages='
asterisk-core-sounds-en-wav 1.6.1-1 2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d
asterisk-core-sounds-en 1.6.1-1 973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50
pocketsphinx-testdata 0.8+5prealpha+1-15 eaeb7a01d54f20b799d1a81ef110ec544b2cb47ea006614078220737a33019f0
'
into="${WORKLOADS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/workloads}/packages"
from="${1:-}"

has() { command -v "$1" > /dev/null 2>&1; }
say() { printf 'speech: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

complete() {
  while read -r name _ hash; do
    [ -z "$name" ] || [ "$(cat "$into/$name/sha256" 2> /dev/null)" = "$hash" ] || return 1
  done <<EOF
$packages
EOF
}

# fetch NAME VERSION HASH: the package unpacked under its name, by one rename.
fetch() {
  [ "$(cat "$into/$1/sha256" 2> /dev/null)" != "$3" ] || return 0
  if [ -n "$from" ]; then
    cp "$from/$1_$2"_*.deb "$draft/" 2> /dev/null || fail "$from has no $1_$2_*.deb"
  else
    (cd "$draft" && apt-get -qq download "$1=$2") ||
      fail "apt-get cannot download $1=$2 (no network, or its lists are old: sudo apt-get update)"
  fi
  file="$(echo "$draft/$1_$2"_*.deb)"
  [ "$(sha256sum "$file" | cut -d' ' -f1)" = "$3" ] ||
    fail "$(basename "$file") is not the file that is known here (SHA-256 should be $3)"
  dpkg -x "$file" "$draft/$1"
  echo "$3" > "$draft/$1/sha256"
  rm -rf "${into:?}/$1"
  mv "$draft/$1" "$into/$1"
  say "$1 $2 is in $into/$1"
}

if complete; then
  say "its data are in $into"
  exit 0
fi
for tool in dpkg sha256sum ${from:+cp} $([ -n "$from" ] || echo apt-get); do
  if ! has "$tool"; then
    say "there is no $tool here, so the recordings cannot be fetched; all other tasks need none"
    exit 0
  fi
done
mkdir -p "$into"
draft="$(mktemp -d "$into/.draft-XXXXXX")"
trap 'rm -rf "$draft"' EXIT
trap 'exit 1' HUP INT TERM
while read -r name version hash; do
  [ -z "$name" ] || fetch "$name" "$version" "$hash"
done <<EOF
$packages
EOF
