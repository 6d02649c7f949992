"""The small program between a container's command and the engine's log: it writes the command's output in hexadecimal lines.

The engine cuts a line of over 16 KB in pieces; `json-file` then loses the character that a cut goes through, and `local` the
line's end (both seen with 20.10). Hexadecimal lines under that length come back byte for byte, live and after a restart. It is
Perl because that starts in milliseconds, and every image that the platform builds has it.
"""

import binascii
from typing import Final

__all__ = ["COURIER", "Letters"]

COURIER: Final = r"""
use strict; use warnings;
use POSIX (); use Fcntl; use Errno;
pipe(my $from, my $to) && pipe(my $told, my $tell) or die "courier: $!\n";
my $pid = 0;
# Before there is a child: one that ends at once must be heard, too.
$SIG{$_} = do { my $name = $_; sub { kill $name, $pid if $pid } } for qw(INT TERM HUP QUIT USR1 USR2);
$SIG{CHLD} = sub { syswrite $tell, "." };
$pid = fork;
die "courier: fork: $!\n" unless defined $pid;
if ($pid == 0) {
    close $_ for $from, $told, $tell;
    POSIX::dup2(fileno($to), 1); close $to;
    { no warnings "exec"; exec { $ARGV[0] } @ARGV; }
    print STDERR "courier: $ARGV[0]: $!\n";
    POSIX::_exit($! == POSIX::ENOENT() ? 127 : 126);
}
close $to; close STDIN;
fcntl($from, F_SETFL, O_NONBLOCK);
my ($ended, $open, $status) = (0, 1, 0);
sub carry {    # all that is there now
    while (1) {
        my $n = sysread($from, my $piece, 8000);
        if (!defined $n) { next if $!{EINTR}; return }
        if ($n == 0) { $open = 0; return }
        my $line = unpack("H*", $piece) . "\n";
        while (length $line) {
            my $done = syswrite(STDOUT, $line);
            if (!defined $done) { next if $!{EINTR}; POSIX::_exit(74) }
            substr($line, 0, $done, "");
        }
    }
}
until ($ended) {
    my $in = "";
    vec($in, fileno($from), 1) = 1 if $open;
    vec($in, fileno($told), 1) = 1;
    next if select($in, undef, undef, undef) < 0;
    if (vec($in, fileno($told), 1)) { sysread($told, my $dot, 100); if (waitpid($pid, POSIX::WNOHANG()) == $pid) { $ended = 1; $status = $? } }
    carry();
}
exit($status & 127 ? 128 + ($status & 127) : $status >> 8);
"""


class Letters:
    """Turns the courier's lines back into what the command wrote. What somebody else wrote between them is left out."""

    def __init__(self) -> None:
        self._rest = b""

    def open(self, chunk: bytes) -> bytes:
        """What came with this piece of the log."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        found = bytearray()
        for line in lines:
            try:
                found += binascii.unhexlify(line)
            except binascii.Error:
                continue
        return bytes(found)
