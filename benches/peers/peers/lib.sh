# Sourced by the peers. A peer is called with one verb:
#
#   cases      prints the names of the cases that it can do
#   artifact   makes what the server serves below $WWW; not measured, and once
#   setup      before each install, teardown after it; a service that setup starts is measured with the install
#   install    from $URL to $TARGET; $ACTIVE is the slot that runs, $STATE is kept when it is killed, $WORK is scratch,
#              $RESUME is 1 when it was killed before
set -euo pipefail

# once FILE COMMAND...: COMMAND makes $FILE.part, unless FILE is there
once() {
    [ -e "$1" ] && return
    mkdir -p "$(dirname "$1")"
    export OUT=$1.part
    "${@:2}"
    mv "$OUT" "$1"
}

# What several peers install: the image as it is, or in zstd or gzip; its path below $WWW.
raw() { once "$WWW/images/$NEW_NAME" ln "$NEW" "$WWW/images/$NEW_NAME.part"; echo "images/$NEW_NAME"; }
zstd_19() { zstd -q -19 -T0 "$NEW" -o "$OUT"; }
zstded() { once "$WWW/images/$NEW_NAME.zst" zstd_19; echo "images/$NEW_NAME.zst"; }
gzip_9() { gzip -9 -n -c "$NEW" > "$OUT"; }
gzipped() { once "$WWW/images/$NEW_NAME.gz" gzip_9; echo "images/$NEW_NAME.gz"; }
sum_of() { sha256sum < "$1" | cut -d' ' -f1 > "$OUT"; }
sha256_of() { once "$WWW/sums/$(basename "$1")" sum_of "$1"; cat "$WWW/sums/$(basename "$1")"; }

# One self-signed certificate for all that want one.
keys() {
    [ -s "$KEYS/certificate.pem" ] && return
    mkdir -p "$KEYS"
    openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj "/CN=bench" \
        -addext keyUsage=critical,digitalSignature,keyCertSign \
        -addext extendedKeyUsage=emailProtection,codeSigning \
        -addext basicConstraints=critical,CA:TRUE \
        -keyout "$KEYS/key.pem" -out "$KEYS/certificate.pem" 2> /dev/null
}
