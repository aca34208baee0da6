# The work of tests/matrix/hooks. With check=1 the first file is the page.
#
# What becomes of a test's outcome: `yes`; `since X` where the kernel is older;
# `not built` where a build option is missing; `lockdown`; else the reason, in a
# note below the table.

BEGIN {
    FS = "\t"
    title["cgroup"] = "Control groups"
    title["namespace"] = "Network namespaces"
    title["probe"] = "Kernel and user functions"
    title["route"] = "Routes (lightweight tunnels)"
    title["socket"] = "Sockets"
    title["structure"] = "Structures of the kernel (struct_ops)"
    title["tc"] = "Traffic control"
    title["trace"] = "Tracepoints, counters, programs loaded for their hook"
    title["xdp"] = "XDP"
}

# ------------------------------------------------------------- the page there is

check && NR == FNR {
    if (sub(/^## /, "")) {
        for (family in title) if (title[family] == $0) page_family = family
        next
    }
    if ($0 !~ /^\| /) next
    cells = split($0, cell, / *\| */)
    if (cell[2] == "hook") {
        for (i = 4; i < cells; i++) column[i] = cell[i]
        next
    }
    if (cell[2] ~ /^-/) next
    gsub(/`/, "", cell[2])
    row = page_family "::" cell[2] (cell[3] == "" ? "" : "_by_" cell[3])
    gsub(/ /, "_", row)
    page_row[row] = 1
    for (i = 4; i < cells; i++) { page[row, column[i]] = cell[i]; page_has[column[i]] = 1 }
    next
}

# ----------------------------------------------------------------------- results

function version(release,    part) {
    split(release, part, /[^0-9]+/)
    return part[1] "." part[2]
}

$3 == "(release)" { name[$1] = version($4); next }
$2 != "links" || $3 !~ /^hooks::/ { next }
{
    test = substr($3, 8)
    if (!(test in known)) { known[test] = 1; tests[++count] = test }
    outcome[test, $1] = $4
    reason[test, $1] = $5
    kernels[$1] = 1
}

function note(text,    i) {
    for (i = 1; i <= notes; i++) if (note_text[i] == text) return i
    note_text[++notes] = text
    return notes
}

function says(test, kernel,    what, why) {
    what = outcome[test, kernel]
    why = reason[test, kernel]
    if (what == "ok") return "yes"
    if (what == "") return ""
    if (what != "skipped") return "FAILED"
    if (match(why, /needs Linux [0-9.]+/)) {
        why = substr(why, RSTART + 12, RLENGTH - 12)
        sub(/[.,]$/, "", why)
        return "since " why
    }
    if (why ~ /needs CONFIG_/) return "not built"
    if (why ~ /refused in lockdown/) return "lockdown"
    return "no (" note(why) ")"
}

function less(a, b,    x, y) {
    split(a, x, "."); split(b, y, ".")
    return x[1] + 0 < y[1] + 0 || x[1] + 0 == y[1] + 0 && x[2] + 0 < y[2] + 0
}

END {
    for (kernel in kernels) {
        if (!(kernel in name)) name[kernel] = kernel
        list[++columns] = kernel
    }
    for (i = 2; i <= columns; i++)
        for (j = i; j > 1 && less(name[list[j]], name[list[j - 1]]); j--) {
            swap = list[j]; list[j] = list[j - 1]; list[j - 1] = swap
        }
    for (i = 2; i <= count; i++)
        for (j = i; j > 1 && tests[j] < tests[j - 1]; j--) {
            swap = tests[j]; tests[j] = tests[j - 1]; tests[j - 1] = swap
        }
    if (count == 0) { print "hooks: no results of tests/links.rs" > "/dev/stderr"; exit 1 }
    if (check) {
        for (i = 1; i <= count; i++) {
            test = tests[i]
            if (!(test in page_row)) { print "hooks: bpf/HOOKS.md has no row for " test; bad = 1; continue }
            for (k = 1; k <= columns; k++) {
                kernel = list[k]
                if (!(name[kernel] in page_has)) continue
                is = says(test, kernel); was = page[test, name[kernel]]
                # Notes are numbered as they come.
                sub(/ \([0-9]+\)$/, "", is); sub(/ \([0-9]+\)$/, "", was)
                # Not yet seen when the page was made.
                if (was == "") { if (is != "") print "hooks: " test " on " name[kernel] ": " is ", not yet in bpf/HOOKS.md"; continue }
                if (is != was) { print "hooks: " test " on " name[kernel] ": " is ", bpf/HOOKS.md says " was; bad = 1 }
            }
        }
        for (row in page_row) if (!(row in known)) { print "hooks: bpf/HOOKS.md has a row for " row ", the suite has not"; bad = 1 }
        if (bad) print "hooks: renew it: tests/matrix/hooks RESULTS... >bpf/HOOKS.md"
        exit bad
    }

    print "# Hooks by kernel"
    print ""
    print "Made by `tests/matrix/hooks` of what the conformance suite (`tests/links.rs`)"
    print "said on each kernel; `tests/matrix/run` compares. *Yes*: a program was"
    print "attached, ran for real events of the test's own, stopped at the detach and at"
    print "the drop; update, pin and re-open, a second program, and a failure at every"
    print "descriptor behave as documented. *Not built*: the kernel of this test lacks"
    print "the build option; *lockdown*: it refuses such programs there. An empty cell was"
    print "not tried since the test was last changed."
    last = ""
    for (i = 1; i <= count; i++) {
        split(tests[i], part, "::")
        family = part[1]
        if (family != last) {
            last = family
            printf "\n## %s\n\n| hook | by |", title[family] == "" ? family : title[family]
            for (k = 1; k <= columns; k++) printf " %s |", name[list[k]]
            printf "\n| --- | --- |"
            for (k = 1; k <= columns; k++) printf " --- |"
            print ""
        }
        hook = part[2]; by = ""
        if (at = index(hook, "_by_")) { by = substr(hook, at + 4); hook = substr(hook, 1, at - 1) }
        gsub(/_/, " ", by)
        printf "| `%s` | %s |", hook, by
        for (k = 1; k <= columns; k++) printf " %s |", says(tests[i], list[k])
        print ""
    }
    for (i = 1; i <= notes; i++) printf "\n%d. %s%s", i, note_text[i], i == notes ? "\n" : ""
}
