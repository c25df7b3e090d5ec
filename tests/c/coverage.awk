# Reads what gcov prints. Lists the lines of csrc/ that no test reaches, and fails if too few are reached.
{
    mark = $1
    sub(/:.*/, "", mark)
    number = $0
    sub(/^[^:]*: */, "", number)
    sub(/:.*/, "", number)
}
/^ *-: *0:Source:/ {
    file = $0
    sub(/.*Source:/, "", file)
    wanted = file ~ /csrc\//
    sub(/.*csrc\//, "csrc/", file)
}
wanted && mark ~ /^([0-9]+\*?|#####)$/ && number > 0 {
    line = file ":" number
    if (!(line in reached)) {
        order[++count] = line
        text = $0
        sub(/^[^:]*:[^:]*:/, "", text)
        code[line] = text
    }
    reached[line] += mark != "#####"
}
END {
    for (i = 1; i <= count; i++) {
        if (reached[order[i]])
            covered++
        else
            print order[i] ":" code[order[i]]
    }
    percent = count ? 100 * covered / count : 0
    printf "%d of %d lines of csrc/ are reached: %.1f %% (at least %d %%)\n", covered, count, percent, least
    exit percent < least
}
