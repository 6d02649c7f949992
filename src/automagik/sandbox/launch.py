"""The two small programs on either side of bubblewrap.

They are Perl, because a sandbox must start in milliseconds (Python takes 15 to be there), and because what they need, system
calls by their numbers, every Perl can do.

`LAUNCH` runs on the host: what bubblewrap wants in open files, it makes from its environment. It stays as the parent of
bubblewrap and ends with bubblewrap's exit code: so the sandbox, which dies with its parent, does not depend on the
platform's life, and whoever kills this process kills everything inside.

For root it first makes a user namespace in which every user is itself: bubblewrap may then mount whatever root may read,
but no process of the agent is ever the machine's root, and the count of processes is the sandbox's own.

`ENTRY` runs inside, as the first process, and ends with the command. Bubblewrap has one of its own, but without the system
call filter, and where it is of the agent's user, the agent may write into its memory. Its child gives away the right to
change the user, takes the limits, closes what is open and becomes the command. Only at last it looks at the command's
variables: `LD_PRELOAD` among them can't touch a program that still has a right. As root, the first process stays root's,
without any capability: else bubblewrap, which has none, either, could not end it.
"""

from typing import Final

__all__ = ["ENTRY", "LAUNCH"]

LAUNCH: Final = r"""
use strict;    # the module of warnings takes three milliseconds, twice
$^F = 65535;    # files opened here stay open in bubblewrap
my ($as_root, $machine, $nice, $status, $bwrap, @args) = @ARGV;
my ($unshare, $memfd_create) = $machine eq "x86_64" ? (272, 319) : (97, 279);
my $own = $$;

opendir(my $open, "/proc/self/fd") or die "launch: /proc: $!\n";
for my $fd (grep { /^\d+$/ && $_ > 2 && $_ ne $status && $_ != fileno($open) } readdir $open) {
    if (open(my $stray, "<&=", $fd)) { close $stray }
}
closedir $open;

my @held;
sub hold {
    my ($data) = @_;
    my $name = "sandbox";
    my $fd = syscall($memfd_create, $name, 0);
    die "launch: memfd_create: $!\n" if $fd < 0;
    open(my $file, "+<&=", $fd) or die "launch: $!\n";
    my $done = 0;
    while ($done < length $data) { $done += syswrite($file, $data, length($data) - $done, $done) or die "launch: $!\n" }
    sysseek($file, 0, 0);
    push @held, $file;
    return $fd;
}

die "launch: the environment of Bubblewrap.environment is missing\n" unless defined $ENV{SECCOMP};
my @hidden = ("--seccomp", hold(pack "H*", $ENV{SECCOMP}), "--clearenv");
my $vars = hold(join "", map { substr($_, 4) . "=$ENV{$_}\0" } grep { /^ENV_/ } sort keys %ENV);
while (@args && $args[0] ne "--") {
    my $word = shift @args;
    if ($word =~ /^\@(DATA_\d+)$/) { $word = hold($ENV{$1}) }
    elsif ($word =~ m{^\@(/.+)$}) {
        open(my $file, "<", $1) or die "launch: $1: $!\n";
        push @held, $file;
        $word = fileno $file;
    }
    push @hidden, $word;
}
# Inside, bubblewrap's command line is that of the first process: there it must not tell the host's paths.
$_ eq '@ENV' and $_ = $vars for @args[0 .. 8];
unshift @args, "--args", hold(join "", map { "$_\0" } @hidden);
%ENV = ();

pipe(my $ask_r, my $ask_w) && pipe(my $go_r, my $go_w) or die "launch: pipe: $!\n";
my $pid = fork;
die "launch: fork: $!\n" unless defined $pid;
if ($pid == 0) {
    # The kernel's OOM killer shall take the sandbox before the platform.
    if (open(my $score, "+<", "/proc/self/oom_score_adj")) {
        my $now = <$score>;
        if ($now < 500) { seek($score, 0, 0); print $score "500"; close $score }
    }
    setpriority(0, 0, getpriority(0, 0) + $nice) if $nice;
    if ($as_root) {
        syscall($unshare, 0x10000000) == 0 or die "launch: a user namespace: $!\n";    # CLONE_NEWUSER
        syswrite $ask_w, "?";
        my $answer;
        sysread($go_r, $answer, 1) or exit 126;
        if (open(my $most, ">", "/proc/sys/user/max_user_namespaces")) { print $most "0"; close $most }
    }
    close $_ for $ask_r, $ask_w, $go_r, $go_w;
    exit 126 if getppid() != $own;
    exec { $bwrap } $bwrap, @args or die "launch: $bwrap: $!\n";
}
close $ask_w; close $go_r;
@held = ();
if ($as_root) {
    my $question;
    if (sysread($ask_r, $question, 1)) {
        for my $map ("uid_map", "gid_map") {
            open(my $file, ">", "/proc/$pid/$map") or die "launch: $map: $!\n";
            print $file "0 0 4294967295\n";
            close $file or die "launch: $map: $!\n";
        }
        syswrite $go_w, "!";
    }
}
close $ask_r; close $go_w;
if ($status =~ /^\d+$/ && open(my $file, "<&=", $status)) { close $file }
# Whoever reads the command's output must see its end, not this process's.
open(STDIN, "<", "/dev/null"); open(STDOUT, ">", "/dev/null"); open(STDERR, ">", "/dev/null");
waitpid($pid, 0);
exit($? & 127 ? 128 + ($? & 127) : $? >> 8);
"""

ENTRY: Final = r"""
use strict;
my ($become, $machine, $vars, $nproc, $fsize, $nofile, @command) = @ARGV;
$_ += 0 for $become, $nproc, $fsize, $nofile;    # to a system call a text is an address
my ($prctl, $capset, $setgroups, $setresgid, $setresuid, $prlimit) =
    $machine eq "x86_64" ? (157, 126, 116, 119, 117, 302) : (167, 91, 159, 149, 147, 261);
sub must { my ($what, @call) = @_; syscall(shift(@call), @call) == 0 or die "sandbox: $what: $!\n" }
sub close_all {
    my ($but) = @_;
    opendir(my $open, "/proc/self/fd") or die "sandbox: /proc: $!\n";
    for my $fd (grep { /^\d+$/ && $_ > 2 && $_ != $but && $_ != fileno($open) } readdir $open) {
        if (open(my $stray, "<&=", $fd)) { close $stray }
    }
    closedir $open;
}
sub no_capability {
    my ($head, $nothing) = (pack("Vl", 0x20080522, 0), pack("V6", (0) x 6));    # _LINUX_CAPABILITY_VERSION_3
    must("capabilities", $capset, $head, $nothing);
}
my $pid = fork;
die "sandbox: fork: $!\n" unless defined $pid;
if ($pid) {
    no_capability();
    close_all(-1);
    open(STDIN, "<", "/dev/null"); open(STDOUT, ">", "/dev/null"); open(STDERR, ">", "/dev/null");
    while ((my $ended = wait) != -1) {
        exit($? & 127 ? 128 + ($? & 127) : $? >> 8) if $ended == $pid;    # the kernel kills who is left
    }
    exit 126;
}
if ($become) {
    for my $capability (0 .. 63) {
        next if syscall($prctl, 24, $capability, 0, 0, 0) == 0;    # PR_CAPBSET_DROP
        last if $capability && $! == 22;    # one more than this kernel has
        die "sandbox: capability $capability: $!\n";
    }
    must("groups", $setgroups, 0, 0);
    must("group", $setresgid, ($become) x 3);
    must("user", $setresuid, ($become) x 3);
    die "sandbox: still another user\n" if grep { $_ != $become } $<, $>, $( + 0, $) + 0;
}
no_capability();
# A core's limit of 1: to 0 the kernel hands cores to the host's crash handler all the same (man 5 core, fs/coredump.c).
for my $limit ([4, 1], [6, $nproc], [1, $fsize], [7, $nofile]) {    # RLIMIT_CORE, NPROC, FSIZE, NOFILE
    my $both = pack("QQ", ($limit->[1]) x 2);
    must("limit $limit->[0]", $prlimit, 0, $limit->[0], $both, 0);
}
close_all($vars);
open(my $file, "<&=", $vars) or die "sandbox: environment: $!\n";
seek($file, 0, 0);
my $all = do { local $/; <$file> } // "";
close $file;
%ENV = map { split(/=/, $_, 2) } split(/\0/, $all);
exec { $command[0] } @command or print STDERR "sandbox: $command[0]: $!\n";
exit 127;
"""
