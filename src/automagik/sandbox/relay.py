"""The relay inside a sandbox: programs that know proxies by address and port reach the egress proxy's socket through it.

A sandbox has no network but its own loopback, where the relay listens. Perl, because every Debian has it (`perl-base`).
"""

from collections.abc import Sequence
from typing import Final

__all__ = ["RELAY", "RELAY_PORT", "relay_environment", "relayed"]

RELAY_PORT: Final = 3128
"""Where the relay listens in the sandbox's own network, in which nothing else does."""

RELAY: Final = r"""
use strict; use warnings;
use IO::Socket::INET; use IO::Socket::UNIX; use IO::Select;
my ($port, $path, @command) = @ARGV;
my $most = 65536;    # bytes held for a side that does not take them
my $most_pairs = 256;    # the proxy takes 64 and tells the others why not; who comes beyond waits
my $listener = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => $port, Proto => "tcp",
    Listen => 64, ReuseAddr => 1, Blocking => 0) or die "relay: port $port: $!\n";
my $parent = $$;
if (@command) {
    # The command takes this process's place, so that it is the one that is waited for; the relay is its child.
    my $pid = fork;
    die "relay: fork: $!\n" unless defined $pid;
    if ($pid) { close $listener; exec { $command[0] } @command or die "relay: $command[0]: $!\n" }
    open(STDIN, "<", "/dev/null"); open(STDOUT, ">", "/dev/null"); open(STDERR, ">", "/dev/null");
}
$SIG{PIPE} = "IGNORE"; $SIG{INT} = "IGNORE";
my (%peer, %out, %ended);    # by file number: the other side, bytes to write here, no more comes for here
my %handle = (fileno($listener) => $listener);

sub drop {
    my ($one) = @_;
    for my $fd ($one, $peer{$one}) {
        next unless defined $fd && $handle{$fd};
        close $handle{$fd};
        delete $handle{$fd};
    }
    my $other = $peer{$one};
    for my $fd ($one, defined $other ? $other : ()) { delete $peer{$fd}; delete $out{$fd}; delete $ended{$fd} }
}

# A connection to the proxy: 1, 0 where its queue is full (waiting here would hold up all that is open), undef where it is away.
sub reach {
    my ($client) = @_;
    socket(my $server, AF_UNIX, SOCK_STREAM, 0) or return 0;
    $_->blocking(0) for $client, $server;
    connect($server, pack_sockaddr_un($path)) or return $!{EAGAIN} ? 0 : undef;
    my ($c, $s) = (fileno $client, fileno $server);
    @handle{$c, $s} = ($client, $server);
    @peer{$c, $s} = ($s, $c);
    @out{$c, $s} = ("", "");
    return 1;
}

my ($pending, $deaf_until) = (undef, 0);    # who waits for the proxy; no descriptor is left to take anybody
while (1) {
    if ($pending) {
        my $reached = reach($pending);
        close $pending unless defined $reached;
        undef $pending if !defined $reached || $reached;
    }
    my $listens = !$pending && keys(%peer) < 2 * $most_pairs && time >= $deaf_until;
    my ($read, $write) = ("", "");
    for my $fd (keys %handle) {
        my $peer = $peer{$fd};
        if (!defined $peer) { vec($read, $fd, 1) = 1 if $listens; next }
        vec($read, $fd, 1) = 1 if !$ended{$peer} && length($out{$peer}) < $most;
        vec($write, $fd, 1) = 1 if length $out{$fd};
    }
    my $ready = select($read, $write, undef, $pending ? 0.05 : 1);
    last if @command && getppid != $parent;
    next if $ready <= 0;
    for my $fd (keys %handle) {
        next unless $handle{$fd};
        if ($fd == fileno $listener) {
            next unless vec($read, $fd, 1);
            $pending = $listener->accept;
            $deaf_until = time + 1 unless $pending || $!{EAGAIN} || $!{EINTR} || $!{ECONNABORTED};
            next;
        }
        my $peer = $peer{$fd};
        if (vec($write, $fd, 1) && length $out{$fd}) {
            my $done = syswrite($handle{$fd}, $out{$fd});
            if (defined $done) { substr($out{$fd}, 0, $done, "") }
            elsif (!$!{EAGAIN} && !$!{EINTR}) { $out{$fd} = ""; $ended{$fd} = 2 }    # it takes no more, but may still say something
        }
        if (vec($read, $fd, 1) && !$ended{$peer}) {
            my $got = sysread($handle{$fd}, my $chunk, $most);
            next if !defined $got && ($!{EAGAIN} || $!{EINTR});
            if ($got) { $out{$peer} .= $chunk } else { $ended{$peer} = 1 }
            if (!defined $got) { $out{$fd} = ""; $ended{$fd} = 2 }    # it broke off, but what it said before is passed on
        }
        for my $side ($fd, $peer) {
            next unless $handle{$side} && $ended{$side} && $ended{$side} == 1 && !length $out{$side};
            shutdown($handle{$side}, 1);
            $ended{$side} = 2;
        }
        drop($fd) if ($ended{$fd} || 0) == 2 && ($ended{$peer} || 0) == 2;
    }
}
"""


def relayed(command: Sequence[str], socket: str, *, port: int = RELAY_PORT) -> tuple[str, ...]:
    """The command with a relay beside it, which listens before the command begins and ends with it."""
    program = command[0]
    found = ("/usr/bin/env", "--", *command) if "/" not in program else tuple(command)
    return ("/usr/bin/perl", "-e", RELAY, str(port), socket, *found)


def relay_environment(port: int = RELAY_PORT) -> dict[str, str]:
    """The variables by which programs find the relay. What is on the sandbox's own loopback is reached directly."""
    url = f"http://127.0.0.1:{port}"
    own = "localhost,127.0.0.1,::1"
    names = {"HTTP_PROXY": url, "HTTPS_PROXY": url, "ALL_PROXY": url, "NO_PROXY": own}
    return {**names, **{name.lower(): value for name, value in names.items()}, "npm_config_noproxy": own}
