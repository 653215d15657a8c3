# The application below Starman whose response takes until the file `finish` exists; its file `begun` tells of a request.

use strict;
use warnings;

my $body = "generation $ENV{SERVER_STARTER_GENERATION}\n";

sub {
    open my $begun, '>', 'begun' or die "cannot create begun: $!";
    close $begun;
    select undef, undef, undef, 0.01 until -e 'finish';
    return [200, ['Content-Type' => 'text/plain', 'Content-Length' => length $body], [$body]];
};
