# The application below Starlet and Starman: each answer names the generation that serves.

use strict;
use warnings;

my $body = "generation $ENV{SERVER_STARTER_GENERATION}\n";

sub { [200, ['Content-Type' => 'text/plain', 'Content-Length' => length $body], [$body]] };
