"""How what a run made is taken out of its workspace: a bundle of its commits, and of what it had not committed yet."""

from automagik.claude_code.repositories import MAX_FILE_BYTES
from automagik.claude_code.workspace import INSIDE, SandboxScript, script_environment
from automagik.memory import clean_text

__all__ = ["extract_commits", "left_out"]

_MAX_BRANCHES = 400
_MAX_WITHIN = 50
_MAX_SAID = 30
_TREE_SECONDS = 45
"""How long reading the tree may take: twice that and the rest must fit into the time for all."""


def extract_commits(
    *,
    base_commit: str,
    workspace: str = INSIDE,
    max_file_bytes: int = MAX_FILE_BYTES,
    tree_on: str | None = None,
    tree_seconds: int = _TREE_SECONDS,
) -> SandboxScript:
    """Print a bundle of everything that the base does not have; nothing where there is nothing. `Repositories.take` reads it.

    It holds every branch with its commits, the commit that is checked out (`refs/automagik/HEAD`) where no branch has it, and the
    tree as it is, ignored files aside, as a commit upon that (`refs/automagik/wip`) where it differs. Equal workspaces give equal
    bytes. Files over `max_file_bytes` that are not committed are left out.

    The agent's folder is data to it: it works in a git folder of its own that borrows the workspace's objects, and neither reads
    the workspace's git settings, hooks and locks nor writes anything to it. So it may run while the agent works. Where the
    workspace's own git folder is gone or broken, the tree is saved all the same, as a commit without a parent; where the tree
    can't be read within `tree_seconds`, the commits are. Of a repository within, and of a submodule's folder, the files are in
    that tree as they stand, for its commits are not. What it had to leave out it says on standard error, a line that begins with
    `automagik:` each: `left_out` reads them.

    With `tree_on`, a commit that is known to be sound, none of the workspace's later commits are in it: the tree as it is stands
    upon that one. So what a run wrote is had even where its commits can't be taken.
    """
    arguments = (workspace, base_commit, str(max_file_bytes), tree_on or "", str(tree_seconds))
    return SandboxScript(
        ("/bin/sh", "-c", _EXTRACT, "extract_commits", *arguments), script_environment(), writable=False
    )


def left_out(stderr: str) -> list[str]:
    """What the script of `extract_commits` says that it left out, a sentence each, by the end of what it wrote on standard error.
    Names of files are the run's own: what is no text in them is shown as `�`."""
    marked = "automagik: "
    lines = [line.removeprefix(marked)[:400] for line in stderr.split("\n") if line.startswith(marked)]
    lines = [clean_text("".join(sign if sign.isprintable() else "\ufffd" for sign in line)) for line in lines]
    return list(dict.fromkeys(lines))[:_MAX_SAID]


_EXTRACT = r"""
set -u
workspace=$1 base=$2 largest=$3 sound=$4 seconds=$5
theirs=$workspace/.git
name='[A-Za-z0-9_][A-Za-z0-9_+@=,%./-]\{0,79\}'

note() { printf 'automagik: %s\n' "$*" >&2; }
fail() { note "$*"; exit 3; }

made=$(mktemp -d "${TMPDIR:-/tmp}/automagik.XXXXXXXX") || fail "no room for a temporary folder"
trap 'rm -rf "$made"' EXIT
cd "$made" || exit 3

begin() {  # a git folder of our own, without settings but ours
    unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE
    git init --quiet --template= "$made/$1" || fail "no room for a git folder"
    GIT_DIR=$made/$1/.git GIT_WORK_TREE=$workspace GIT_INDEX_FILE=$made/$1/index
    export GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE
    mkdir -p "$GIT_DIR/info"
    if [ -f "$theirs/info/exclude" ] && [ ! -L "$theirs/info/exclude" ]; then
        head -c 65536 "$theirs/info/exclude" > "$GIT_DIR/info/exclude"
    fi
}

borrow() {  # their objects, and those of their refs that have a name and a commit: the one that is checked out before all others
    objects=$theirs/objects
    find "$objects" ! -type f ! -type d > odd 2> /dev/null
    [ ! -e "$objects/info/alternates" ] || echo alternates >> odd
    [ ! -s odd ] || note "the workspace's git folder has links, pipes or other folders of objects in it, which are not followed"
    find "$objects" "(" -name '*.rev' -o -name '*.bitmap' -o -name 'multi-pack-index*' -o -name 'commit-graph*' ")" >> odd 2> /dev/null
    if [ -s odd ]; then
        # A pipe would hold git up for ever, a link or another folder of objects lead elsewhere, and what only tells faster where
        # objects are, and is wrong, end it. So it is given objects and packs, and nothing else.
        mkdir "$made/sound"
        find "$objects" -path "$objects/info" -prune -o -type f "(" -name '*.pack' -o -name '*.idx' -o -path "$objects/??/*" ")" \
            -print0 2> /dev/null | xargs -0 -r cp --parents -s -t "$made/sound"
        objects=$made/sound$objects
        mkdir -p "$objects"
    fi
    printf '%s\n' "$objects" > "$GIT_DIR/objects/info/alternates"
    value=
    if [ -f "$theirs/HEAD" ]; then value=$(head -c 300 "$theirs/HEAD" 2> /dev/null | tr -d '\0'); fi
    if printf '%s\n' "$value" | grep -q -x -e "ref: refs/heads/$name" -e '[0-9a-f]\{40\}'; then
        printf '%s\n' "$value" > "$GIT_DIR/HEAD"
    else
        note "the workspace's HEAD can't be read"
    fi
    current=${value#ref: refs/heads/}
    [ -n "$current" ] || current=//  # no branch has that name
    if [ -f "$theirs/packed-refs" ]; then
        head -c 4194304 "$theirs/packed-refs" \
            | sed -n "s|^\([0-9a-f]\{40\}\) \(refs/heads/$name\)\$|\1 \2|p" > packed
        grep -F -e " refs/heads/$current" packed | head -n 20 > "$GIT_DIR/packed-refs"
        grep -v -F -e " refs/heads/$current" packed | head -n 500 >> "$GIT_DIR/packed-refs"
    fi
    (cd "$theirs/refs/heads" 2> /dev/null && find . -type f) | sed -n "s|^\./\($name\)\$|\1|p" | grep -v '\.lock$' > loose
    grep -x -F -e "$current" loose > refs
    grep -v -x -F -e "$current" loose | head -n 500 >> refs
    while IFS= read -r ref; do
        value=$(head -c 41 "$theirs/refs/heads/$ref" 2> /dev/null | tr -d '\0')
        case $value in *[!0-9a-f]*) continue ;; esac
        [ ${#value} -eq 40 ] || continue
        mkdir -p "$GIT_DIR/refs/heads/$(dirname "$ref")" && printf '%s\n' "$value" > "$GIT_DIR/refs/heads/$ref"
    done < refs
}

branches() {  # names of branches that are commits, a line each
    git for-each-ref --format='%(objectname) %(refname)' refs/heads 2> /dev/null > all
    git cat-file --batch-check='%(objecttype) %(rest)' < all 2> /dev/null | sed -n 's/^commit //p' > named
    # The one that is checked out, which is the run's, is never among those that are too many.
    current=$(git symbolic-ref --quiet HEAD)
    if [ -n "$current" ] && grep -q -x -F -e "$current" named; then printf '%s\n' "$current"; fi
    grep -v -x -F -e "$current" named | head -n @BRANCHES@
    [ "$(wc -l < named)" -le @BRANCHES@ ] || note "left out: branches over @BRANCHES@"
}

index() {  # theirs as it is, for it knows which files are unchanged; but not where it hides changes
    if [ -n "$1" ] && [ -z "$sound" ] && [ -f "$theirs/index" ] && [ ! -L "$theirs/index" ] \
        && cp -p "$theirs/index" "$GIT_INDEX_FILE" 2> /dev/null && chmod u+w "$GIT_INDEX_FILE" \
        && git ls-files -v > flags 2> /dev/null && ! grep -q '^[a-zS]' flags; then
        return 0
    fi
    rm -f "$GIT_INDEX_FILE" "$GIT_INDEX_FILE.lock"
    if [ -n "$1" ]; then git read-tree "$1"; fi
}

add() {  # what it can't read in time (a pipe in the place of a file) must not take the commits with it
    (cd "$workspace" && timeout -k 2 "$seconds" git add --all --ignore-errors --pathspec-from-file="$made/paths" --pathspec-file-nul) \
        > /dev/null 2> added
}

nested() {  # files of repositories within and of submodules, of which git itself keeps a commit's name and nothing else
    git ls-files --stage -z | sed -z -n 's|^160000 [^\t]*\t|./|p' >> within
    tr '\n\0' '?\n' < within | sort -u | head -n @WITHIN@ > folders
    [ "$(sort -zu within | tr -cd '\0' | wc -c)" -le @WITHIN@ ] || note "left out: repositories within, over @WITHIN@"
    while IFS= read -r folder; do
        if [ ! -d "$workspace/$folder" ] || [ -L "$workspace/$folder" ]; then continue; fi
        (cd "$workspace" && timeout -k 2 "$((seconds / 5 + 1))" git check-ignore --quiet "$folder") 2> /dev/null
        case $? in 0) continue ;; 124 | 137) note "left out, not read in time: $folder"; return ;; esac
        (cd "$workspace/$folder" && GIT_WORK_TREE=. GIT_INDEX_FILE=$made/none timeout -k 2 "$((seconds / 5 + 1))" \
            git ls-files --others --exclude-standard -z) 2> /dev/null > others
        case $? in 124 | 137) note "left out, not read in time: $folder"; return ;; esac
        sed -z -e '/\/$/d' -e 's|^|./|' others > all
        [ -s all ] || continue
        note "a repository within the repository; its files are kept, its own commits are not: $folder"
        (cd "$workspace/$folder" && xargs -0 -r sh -c 'find "$@" -maxdepth 0 "(" -type l -o -type f ! -size "+$0c" ")" -print0' \
            "$largest" < "$made/all" \
            | timeout -k 2 "$((seconds / 5 + 1))" git update-index --add --replace -z --stdin) 2> /dev/null \
            || { note "left out, can't be read: $folder"; return; }
    done < folders
}

wip() {  # refs/automagik/wip, where the tree differs from the commit $1 (empty: from nothing)
    index "$1" || { rm -f "$GIT_INDEX_FILE"; note "the commit that is checked out can't be read"; return 1; }
    printf ':/\0' > paths
    (cd "$workspace" && find . -path ./.git -prune -o -name .git -prune -print0 -o -type f -size "+${largest}c" -print0) \
        > found 2> /dev/null
    sed -z -n 's|/\.git$||p' found > within
    sed -z '/\/\.git$/d' found > large
    if [ -s large ]; then
        tr '\n\0' '?\n' < large | head -n 20 | while IFS= read -r file; do note "left out, too large: $file"; done
        sed -z 's|^\./|:(top,exclude,literal)|' large >> paths
    fi
    # Not every file can be read, and a repository within may have no commit: the rest is saved all the same.
    add
    case $? in
    0) ;;
    124 | 137) note "the tree could not be read within $seconds seconds" ;;
    *)
        # A file that is not in the encoding which the repository's attributes say stops it: saved as it is, then.
        printf '* !working-tree-encoding\n' > "$GIT_DIR/info/attributes"
        if ! add; then
            # Of a repository within that has no commit yet the files are had below.
            grep -v -e '^hint:' -e 'does not have a commit checked out' -e '^fatal: adding files failed' added > told
            [ ! -s told ] || note "not everything was saved: $(tail -n 1 told | head -c 300)"
        fi ;;
    esac
    nested
    tree=$(git write-tree 2> /dev/null) || { note "the tree can't be saved: is the disk full?"; return 1; }
    moment='@0 +0000' parent=
    if [ -n "$1" ]; then
        [ "$tree" != "$(git rev-parse "$1^{tree}")" ] || return 0
        moment="@$(git rev-list --max-count=1 --format=%ct "$1" | tail -n 1) +0000" parent="-p $1"  # `git show -s` would look for changes
    elif [ "$tree" = 4b825dc642cb6eb9a060e54bf8d69288fbee4904 ]; then
        return 0
    fi
    # The date is the parent's, so that an unchanged tree gives the same commit again.
    commit=$(GIT_AUTHOR_NAME=Automagik GIT_AUTHOR_EMAIL=automagik@localhost GIT_AUTHOR_DATE=$moment \
        GIT_COMMITTER_NAME=Automagik GIT_COMMITTER_EMAIL=automagik@localhost GIT_COMMITTER_DATE=$moment \
        git commit-tree "$tree" $parent -m 'Work in progress: what the run had not committed') || return 1
    git update-ref refs/automagik/wip "$commit"
}

bundle() {  # what is named in the file `wanted`, less the base, to the file `out`; 1: it can't be made
    [ -n "$(git rev-list --max-count=1 --stdin < wanted 2> /dev/null)" ] || return 0
    git -c pack.threads=1 bundle create --quiet --version=2 out --stdin < wanted 2> told || { rm -f out; return 1; }
}

if [ -d "$theirs/objects" ] && [ ! -L "$theirs" ]; then
    begin own
    borrow
    if git cat-file -e "$base^{commit}" 2> /dev/null; then
        head=$(git rev-parse --quiet --verify "${sound:-HEAD}^{commit}" 2> /dev/null) || head=$base
        git update-ref refs/automagik/HEAD "$head"
        wip "$head" || true
        if [ -n "$sound" ]; then : > wanted; else branches > wanted; fi
        git for-each-ref --format='%(refname)' refs/automagik >> wanted
        printf '^%s\n' "$base" >> wanted
        if bundle; then
            if [ -f out ]; then cat out; fi
            exit 0
        fi
        note "the commits can't be read: $(tail -n 1 told | head -c 300)"
    else
        note "the commit that the run began from is not there any more"
    fi
else
    note "the workspace's git folder is gone"
fi
begin tree
wip "" || fail "nothing could be saved"
git for-each-ref --format='%(refname)' refs/automagik > wanted
if [ -s wanted ]; then
    bundle || fail "nothing could be saved: $(tail -n 1 told | head -c 300)"
    if [ -f out ]; then cat out; fi
fi
""".replace("@BRANCHES@", str(_MAX_BRANCHES)).replace("@WITHIN@", str(_MAX_WITHIN))
"""POSIX sh with git, find, sed, grep and the core utilities; its arguments are data, never part of the text."""
