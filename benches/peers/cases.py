"""What is installed over what, and what of it a peer is told."""

import os
from collections import namedtuple

# `active` and `target` are what the slots hold before: "old", "new" or "noise".
Case = namedtuple("Case", "title new old format active target is_cut")


def case(title, format="ext4", new="v2", old="v1", active="old", target="noise", is_cut=False):
    return Case(title, new, old, format, active, target, is_cut)


CASES = {
    "full-raw": case("full, raw", active="noise"),
    "full-zstd": case("full, compressed", active="noise"),
    "ext4": case("ext4, a quarter's update"),
    "ext4-hotfix": case("ext4, a hotfix", new="v3"),
    "squashfs": case("squashfs, a quarter's update", format="squashfs"),
    "erofs": case("erofs, a quarter's update", format="erofs"),
    "noop": case("the same image again", active="new", target="new"),
    "resume-full": case("full, compressed, killed at half", active="noise", is_cut=True),
    "resume-ext4": case("ext4, a quarter's update, killed at half", is_cut=True),
}


def environment(peer, name):
    """For a peer's verbs: PEER CASE FORMAT; NEW OLD (images) and NEW_NAME OLD_NAME; WWW URL (what is served)."""
    bench, chosen = os.environ["BENCH_DIR"], CASES[name]
    new, old = f"{chosen.new}.{chosen.format}", f"{chosen.old}.{chosen.format}"
    return dict(os.environ) | {
        "PEER": peer, "CASE": name, "FORMAT": chosen.format, "RESUME": "0",
        "NEW": f"{bench}/images/{new}", "OLD": f"{bench}/images/{old}", "NEW_NAME": new, "OLD_NAME": old,
        "WWW": f"{bench}/www", "URL": "http://127.0.0.1:8480", "KEYS": f"{bench}/keys",
    }
