# Reads one kernel's output (see execute) and prints, tab separated:
#
#   kernel  label  test  outcome  reason
#
# with outcome one of ok, FAILED, ignored, skipped, and, for what went wrong
# outside a test, the pseudo test `(binary)` or `(kernel)`. Every binary must
# have printed a summary that agrees with its lines, and the whole must end in
# the exit line, or there is a failure.
#
# Variables: kernel; complete=0 if no exit line is expected (host).

function say(test, outcome, reason) {
    printf "%s\t%s\t%s\t%s\t%s\n", kernel, label, test, outcome, reason
}

function finish_binary(    i, name, count, end) {
    if (label == "")
        return
    # libtest exits with 101 after a failed test.
    if (rc == "") end = "no exit status"
    else if (rc == 137) end = "killed: out of time or memory"
    else if (rc != 0 && rc != 101) end = "exit status " rc
    count["ok"] = count["FAILED"] = count["ignored"] = 0
    for (i = 1; i <= tests; i++) {
        name = order[i]
        if (!(name in result)) {
            result[name] = "FAILED"
            why[name] = "did not return" (end != "" ? ": " end : "")
            end = "told"
        }
        count[result[name]]++
        if (result[name] == "ok" && name in skip)
            say(name, "skipped", skip[name])
        else
            say(name, result[name], why[name])
    }
    if (end == "" && rc != 0 && count["FAILED"] == 0)
        end = "exit status " rc
    else if (end == "" && summary != count["ok"] " " count["FAILED"] " " count["ignored"])
        end = "summary does not agree with the lines read"
    if (end != "" && end != "told")
        say("(binary)", "FAILED", end (tests ? " after " order[tests] : "") (first_err != "" ? ": " first_err : ""))
    label = ""
}

function note_skip(line,    at, test, reason, i) {
    sub(/^.*skipped: /, "", line)
    at = index(line, ": ")
    test = at ? substr(line, 1, at - 1) : line
    reason = at ? substr(line, at + 2) : "no reason given"
    # A test names itself with or without its module path.
    for (i = 1; i <= tests; i++)
        if (order[i] == test || substr(order[i], length(order[i]) - length(test) - 1) == "::" test) {
            skip[order[i]] = reason
            return
        }
    # A part of a test, under a name of its own.
    say("(part) " test, "skipped", reason)
}

{ sub(/\r+$/, "") }

/^@begin / {
    finish_binary()
    label = substr($0, 8)
    tests = 0; current = ""; rc = ""; summary = ""; first_err = ""
    split("", result); split("", why); split("", skip); split("", order)
    next
}
/^@rc / { rc = $2; current = ""; printf "%s\t%s\t(seconds)\t%s\t\n", kernel, label, $3; next }
/^@err .*skipped: / { note_skip(substr($0, 6)); next }
/^@err / { if (first_err == "") first_err = substr($0, 6); next }
/^@boot / { printf "%s\t\t(release)\t%s\t\n", kernel, $2; next }
/^@dmesg .*(BUG:|Oops|general protection)/ { finish_binary(); say("(kernel)", "FAILED", substr($0, 8)); next }
/^@(dmesg|note) / { finish_binary(); printf "%s\t\t(note)\t%s\t\n", kernel, substr($0, index($0, " ") + 1); next }
/^@exit / { complete = 0; finish_binary(); next }

/^test .* \.\.\. / || /^test .* \.\.\.$/ {
    at = index($0, " ... ")
    current = substr($0, 6, (at ? at : length($0) - 3) - 6)
    rest = at ? substr($0, at + 5) : ""
    sub(/ - should panic$/, "", current)
    order[++tests] = current
    if (match(rest, /^ignored, /)) {
        result[current] = "ignored"; why[current] = substr(rest, 10); current = ""
        next
    }
    $0 = rest
}
# What a test wrote itself may stand between its name and its outcome.
current != "" && /(^|[^a-z])(ok|FAILED|ignored)$/ {
    match($0, /(ok|FAILED|ignored)$/)
    result[current] = substr($0, RSTART)
    current = ""
    next
}
/^test result: / {
    match($0, /[0-9]+ passed/); a = substr($0, RSTART, RLENGTH - 7)
    match($0, /[0-9]+ failed/); b = substr($0, RSTART, RLENGTH - 7)
    match($0, /[0-9]+ ignored/); c = substr($0, RSTART, RLENGTH - 8)
    summary = a " " b " " c
    next
}
# What failed says why below a line with its name; a thread it started may have
# panicked in its place.
/^---- .* stdout ----$/ { failing = $2; next }
/^thread '.*panicked at / && failing != "" { place = $0; sub(/^.*panicked at /, "", place); next }
place != "" { if (failing in result) why[failing] = place " " $0; failing = place = "" }

END {
    label_open = label
    finish_binary()
    if (complete) {
        label = ""
        say("(kernel)", "FAILED", "no exit line: panic or hang" (label_open != "" ? " in " label_open : " before the tests"))
    }
}
