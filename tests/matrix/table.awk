# Prints the table test × kernel, the reasons below it and the totals, from the
# lines of results.awk. Variable: columns, the kernels in order. Exits 1 if
# anything failed.
BEGIN {
    FS = "\t"
    n = split(columns, kernels, " ")
    mark["ok"] = "ok"; mark["FAILED"] = "FAIL"; mark["ignored"] = "ign"; mark["skipped"] = "skip"
}
$3 == "(release)" { release[$1] = $4; next }
$3 == "(seconds)" { seconds[$1] += $4; next }
$3 == "(note)" { notes = notes sprintf("  %-6s %s\n", $1, $4); next }
{
    row = $2 == "" ? $3 : $2 " " $3
    if (!(row in seen)) {
        seen[row] = 1
        rows[++count] = row
        if (length(row) > width) width = length(row)
    }
    cell[row, $1] = mark[$4]
    total[$1, $4]++
    if ($4 == "skipped" || $4 == "ignored") skipped = skipped sprintf("  %-6s %s: %s\n", $1, row, $5)
    if ($4 == "FAILED") failed = failed sprintf("  %-6s %s%s\n", $1, row, $5 == "" ? "" : ": " $5)
}
END {
    if (width < 10) width = 10
    printf "%-" width "s", "test"
    for (k = 1; k <= n; k++) printf "  %6s", kernels[k]
    print ""
    for (r = 1; r <= count; r++) {
        printf "%-" width "s", rows[r]
        for (k = 1; k <= n; k++) printf "  %6s", (rows[r], kernels[k]) in cell ? cell[rows[r], kernels[k]] : "-"
        print ""
    }
    if (skipped != "") printf "\nskipped:\n%s", skipped
    if (notes != "") printf "\nnotes:\n%s", notes
    if (failed != "") printf "\nfailed:\n%s", failed
    print ""
    for (k = 1; k <= n; k++) {
        name = kernels[k]
        s = total[name, "skipped"] + total[name, "ignored"]
        printf "%-6s  %-28s %4d passed, %d failed, %d skipped", name, release[name], total[name, "ok"], total[name, "FAILED"], s
        if (name in seconds) printf ", %d s in tests", seconds[name]
        print ""
        ok += total[name, "ok"]; bad += total[name, "FAILED"]; skips += s
    }
    printf "\nmatrix: %d passed, %d failed, %d skipped\n", ok, bad, skips
    exit bad > 0
}
