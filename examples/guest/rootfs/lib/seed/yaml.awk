# Splits the part of YAML that seeds use into files below `out`:
#
#   key: scalar             out/key
#   key:
#     - scalar              out/key, one line per item
#   key:
#     - field: scalar       out/key.001/field
#       field: |
#         text
#
# Scalars are plain, 'single' or "double" quoted (\n \r \t \" \/ \\) on one line,
# or literal blocks: `|` with - + and an indentation digit. Flow lists and maps,
# folded blocks, anchors and deeper nesting are reported on stderr and left out.

BEGIN {
    escape["n"] = "\n"; escape["r"] = "\r"; escape["t"] = "\t"
}

function indentation(line) {
    match(line, /^ */)
    return RLENGTH
}

function double_quoted(s,    text, c) {
    while (match(s, /^[^"\\]+/) || s ~ /^\\/) {
        if (s ~ /^\\/) {
            c = substr(s, 2, 1)
            text = text (c in escape ? escape[c] : c)
            s = substr(s, 3)
        } else {
            text = text substr(s, 1, RLENGTH)
            s = substr(s, RLENGTH + 1)
        }
    }
    return text
}

function single_quoted(s,    text) {
    while (match(s, /^[^']+/) || s ~ /^''/) {
        if (s ~ /^''/)
            RLENGTH = 1
        text = text substr(s, 1, RLENGTH)
        s = substr(s, RLENGTH + (s ~ /^''/) + 1)
    }
    return text
}

function scalar(s) {
    if (s ~ /^"/)
        return double_quoted(substr(s, 2))
    if (s ~ /^'/)
        return single_quoted(substr(s, 2))
    sub(/ +#.*$/, "", s)
    sub(/ +$/, "", s)
    return s == "~" || s == "null" ? "" : s
}

function refuse() {
    printf "%s line %d: not understood: %s\n", FILENAME, FNR, $0 > "/dev/stderr"
}

# `column` is where the key, or the dash of the item, stands.
function assign(file, s, column, terminator) {
    if (s ~ /^\|[-+1-9]*( |$)/) {
        block = file
        block_column = column
        block_indent = match(s, /[1-9]/) ? column + substr(s, RSTART, 1) : -1
        block_chomp = match(s, /[-+]/) ? substr(s, RSTART, 1) : ""
        block_lines = 0
        blank_lines = ""
        printf "" > file
    } else if (s ~ /^[>|\[{&*!%@`]/)
        refuse()
    else
        printf "%s%s", scalar(s), terminator > file
}

function end_block() {
    if (block_chomp != "-" && block_lines)
        printf "\n" > block
    if (block_chomp == "+")
        printf "%s", blank_lines > block
    block = ""
}

{ sub(/\r$/, "") }

block != "" {
    if ($0 ~ /^ *$/ && (block_indent < 0 || length($0) <= block_indent)) {
        blank_lines = blank_lines "\n"
        next
    }
    if (indentation($0) > block_column) {
        if (block_indent < 0)
            block_indent = indentation($0)
        printf "%s%s%s", block_lines++ ? "\n" : "", blank_lines, substr($0, block_indent + 1) > block
        blank_lines = ""
        next
    }
    end_block()
}

/^ *(#|$)/ || /^(---|\.\.\.)( |$)/ { next }

{
    column = indentation($0)
    text = substr($0, column + 1)

    if (text ~ /^-( |$)/) {
        if (items && column != item_column || key == "") {
            refuse()
            next
        }
        item_column = column
        items++
        match(text, /^- */)
        text = substr(text, RLENGTH + 1)
        column += RLENGTH
        if (text !~ /^[A-Za-z_][A-Za-z0-9_-]*:( |$)/) {
            assign(out "/" key, text, item_column, "\n")
            next
        }
        entry = sprintf("%s/%s.%03d", out, key, items)
        entry_column = column
        system("mkdir -p " entry)
    }

    if (!match(text, /^[A-Za-z_][A-Za-z0-9_-]*:( |$)/)) {
        refuse()
        next
    }
    name = text
    sub(/:.*/, "", name)
    text = substr(text, RLENGTH + 1)
    sub(/^ +/, "", text)
    sub(/^#.*/, "", text)

    if (column == 0) {
        key = name
        items = 0
        entry = ""
        if (text != "")
            assign(out "/" key, text, 0, "")
    } else if (entry != "" && column == entry_column)
        assign(entry "/" name, text, column, "")
    else
        refuse()
}

END {
    if (block != "")
        end_block()
}
