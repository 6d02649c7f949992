"""The small program between the platform and bubblewrap: what bubblewrap wants in open files, it makes from its environment.

It is Perl, because a sandbox must start in milliseconds (Python takes 15 to be there), and because what it needs, system
calls by their numbers, every Perl can do. It stays as the parent of bubblewrap and ends with bubblewrap's exit code: so
the sandbox, which dies with its parent, does not depend on the platform's life, and whoever kills this process kills
everything inside.

For root it first makes a user namespace in which every user is itself: bubblewrap may then mount whatever root may read,
but no process in the sandbox is ever the machine's root, and the count of processes is the sandbox's own.
"""

from typing import Final

__all__ = ["LAUNCH"]

LAUNCH: Final = r"""
use strict; use warnings;
$^F = 65535;    # files opened here stay open in bubblewrap
my ($as_root, $unshare, $memfd_create, $nice, $status, $bwrap, @args) = @ARGV;
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
    my $fd = syscall($memfd_create + 0, $name, 0);
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
push @hidden, "--setenv", substr($_, 4), $ENV{$_} for grep { /^ENV_/ } sort keys %ENV;
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
        syscall($unshare + 0, 0x10000000) == 0 or die "launch: a user namespace: $!\n";    # CLONE_NEWUSER
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
