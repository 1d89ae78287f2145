"""The table: a row for each peer and case, the median of its rounds."""

from statistics import median

from cases import CASES

MIB = 1 << 20
OURS = "twinboot"
HEAD = ["", "wall s", "CPU s", "memory MiB", "network MiB", "written MiB", "wall / best rival", "network / best rival",
        "network / bound"]


def table(results, bounds):
    lines = [row(HEAD), row(["---"] + ["---:"] * (len(HEAD) - 1))]
    for case, bound in bounds.items():
        medians = {peer: summary(rounds) for peer, rounds in by_peer(results, case).items()}
        if not medians:
            continue
        title = f"**{CASES[case].title}**" + (f", bound {bound / MIB:.1f} MiB" if bound else "")
        lines.append(row([title] + [""] * (len(HEAD) - 1)))
        rivals = [taken for peer, taken in medians.items() if not peer.startswith(OURS) and taken["ok"]]
        for peer, taken in medians.items():
            lines.append(row([peer] + figures(taken, rivals, bound)))
    return "\n".join(lines)


def by_peer(results, case):
    peers = {}
    for line in results:
        if line["case"] == case:
            peers.setdefault(line["peer"], []).append(line)
    return peers


def summary(rounds):
    names = ["wall_secs", "cpu_secs", "memory_bytes", "network_bytes", "written_bytes", "whole_bytes"]
    return {name: median(line[name] or 0 for line in rounds) for name in names} | {
        "ok": all(line["ok"] for line in rounds), "rounds": len(rounds)}


def figures(taken, rivals, bound):
    if not taken["ok"]:
        return ["failed"] + [""] * (len(HEAD) - 2)

    def ratio(name, of=None):
        best = min((rival[name] for rival in rivals), default=0) if of is None else of
        return f"{taken[name] / best:.2f}" if best else ""

    network = f"{taken['network_bytes'] / MIB:.1f}"
    if taken["whole_bytes"]:
        network += f" ({100 * taken['network_bytes'] / taken['whole_bytes']:.0f} %)"
    return [f"{taken['wall_secs']:.2f}", f"{taken['cpu_secs']:.2f}", f"{taken['memory_bytes'] / MIB:.1f}", network,
            f"{taken['written_bytes'] / MIB:.1f}", ratio("wall_secs"), ratio("network_bytes"),
            ratio("network_bytes", bound) if bound else ""]


def row(cells):
    return f"| {' | '.join(cells)} |"
