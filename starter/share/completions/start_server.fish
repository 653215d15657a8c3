complete -c start_server -l port -d 'Listen on a TCP port, or with a leading u on a UDP port; without HOST, on every IPv4 address. An IPv6 address is written like [::1]:80. =FD sets the descriptor\'s number in the server. PORT 0 takes a free port. With freebind, HOST may be an address that no interface has yet. Repeatable; takes a comma-separated list.' -r
complete -c start_server -l path -d 'Listen on a unix socket. MODE is octal (default: 0777). @NAME is an abstract socket, without a file. Repeatable; takes a comma-separated list of absolute paths.' -r -F
complete -c start_server -l backlog -d 'How many connections each listener may queue (default: 4096).' -r
complete -c start_server -l dir -d 'Change to this directory before executing the server program.' -r -f -a "(__fish_complete_directories)"
complete -c start_server -l envdir -d 'Set an environment variable for each file in this directory: its name is that of the file, its value the first line. The files are read anew for each restart.' -r -f -a "(__fish_complete_directories)"
complete -c start_server -l preset -d 'Set what this server program needs: --fd-env, --signal-on-hup, --signal-on-term and --ready. NAME is nginx, puma, unicorn and others, or plain for one that drains on TERM. Each of these options wins over it. With list, print what each preset sets and why, and exit.' -r -f -a "gunicorn\t''
h2o\t''
hypercorn\t''
nginx\t''
node\t''
php-fpm\t''
plain\t''
puma\t''
starlet\t''
starman\t''
unicorn\t''
uvicorn\t''
list\t''"
complete -c start_server -l fd-env -d 'Also announce the descriptors in the variables of systemd (LISTEN_FDS), unicorn (UNICORN_FD), nginx (NGINX), einhorn (EINHORN_FDS) or php-fpm (FPM_SOCKETS). Repeatable; takes a comma-separated list.' -r -f -a "systemd\t''
unicorn\t''
nginx\t''
einhorn\t''
php-fpm\t''"
complete -c start_server -l label -d 'What each generation of the server is called in the log, the status and verdicts (default: the path and time of its program, and --dir).' -r
complete -c start_server -l label-file -d 'The same from the first line of this file, read for each generation.' -r -F
complete -c start_server -l interval -d 'How long a new server must stay alive to count as started, and the shortest time between two starts (default: 1).' -r
complete -c start_server -l start-limit -d 'Give up a restart after this many failed starts (default: no limit).' -r
complete -c start_server -l check -d 'Run this shell command before each restart, as the server would run. Unless it exits with 0 within --start-timeout, nothing is started.' -r -f -a "(__fish_complete_command)"
complete -c start_server -l replace -d 'Stop the old server when the new one serves (overlap, the default), or before the new one is started (stop-first): then there are never two servers, and connections wait in the queue meanwhile.' -r -f -a "overlap\t''
stop-first\t''"
complete -c start_server -l signal-on-hup -d 'The signal for the old server when it is to stop (default: TERM).' -r
complete -c start_server -l kill-old-delay -d 'The time between the start of a new server and that signal (default: 0, or 5 with --enable-auto-restart).' -r
complete -c start_server -l kill-old-timeout -d 'Kill an old server that is still alive this long after that signal (default: never).' -r
complete -c start_server -l max-old-generations -d 'Kill the oldest servers at once when more generations than this have been told to stop and are still alive (default: no limit).' -r
complete -c start_server -l signal-on-term -d 'The signal for the server when TERM ends start_server (default: TERM).' -r
complete -c start_server -l stop-timeout -d 'Kill what is still alive this long after that signal (default: never).' -r
complete -c start_server -l enable-auto-restart -d 'Start a new server at regular intervals, as on HUP (default: 0).' -r -f -a "0\t''
1\t''"
complete -c start_server -l auto-restart-interval -d 'The time between two such starts (default: 360); doubled while an old server is still alive.' -r
complete -c start_server -l switch -d 'Open several sockets for each port, and give each new server one that no other has. Once it serves, all new connections go to it, and the old one has time to finish before it is told to stop. Unix sockets and inherited ones are shared, as are all where the kernel cannot do it; with required, that is refused.' -r
complete -c start_server -l lanes -d 'With --switch: how many generations can live at a time, old ones too, each with sockets of its own: 2 to 8 (default: 2).' -r
complete -c start_server -l quiet-time -d 'With --switch: how long the old server\'s queue must have been empty before it is told to stop (default: 0.2).' -r
complete -c start_server -l switch-timeout -d 'With --switch: tell the old server to stop after this time in any case (default: 5).' -r
complete -c start_server -l udp-flows -d 'With --switch and QUIC: give packets of a connection to the server that has accepted it. Byte OFFSET, 0 to 19, of each connection ID that a server issues must be the number in its SERVER_STARTER_LANE.' -r
complete -c start_server -l workers -d 'Run this many servers side by side, or one for each CPU (default: 1). Each finds its number in SERVER_STARTER_WORKER, from 0.' -r
complete -c start_server -l rolling -d 'Replace them one by one: start up to this many new ones (default: 1), and stop an old one as soon as the new one in its place serves. If one fails, the restart stops there. Without this option, all are replaced at once.' -r
complete -c start_server -l start-parallel -d 'How many of them may be starting at the same time (default: the number of CPUs; with --ready=interval no limit).' -r
complete -c start_server -l ready -d 'What proves that a new server serves, and so ends the old one: interval      it stays alive for --interval (default) notify        it says READY=1, as to systemd (sd_notify) fd:N          it writes a line feed to descriptor N, as to s6 exec:COMMAND  a shell command exits with 0; it is tried again accept        it accepts a connection on a listener of its own http:PATH     it answers GET PATH there' -r
complete -c start_server -l ready-status -d 'The statuses that count as ready with --ready=http (default: 200).' -r
complete -c start_server -l probe -d 'Where the server\'s own listener is for --ready=accept and http: a port of 127.0.0.1 (default), or a unix socket. It is announced after the others; with exec, COMMAND finds it in SERVER_STARTER_PROBE.' -r -f -a "tcp\t''
unix\t''"
complete -c start_server -l start-timeout -d 'How long a new server may take to become ready; after that it has failed (default: 60).' -r
complete -c start_server -l watch -d 'With --ready=exec, accept or http: go on asking the server. When it fails for this long, it is unhealthy: that is logged and shown, and within --kill-old-delay the old server takes over again.' -r
complete -c start_server -l fd-store-max -d 'With --ready=notify: keep up to this many descriptors that a server sends (FDSTORE=1, as to systemd), and pass them to the next ones after the listeners, in the variables of --fd-env=systemd (default: 0).' -r
complete -c start_server -l runtime-dir -d 'Make this directory for the server\'s user if it is missing. Relative --pid-file, --status-file and --log-file are in it.' -r -f -a "(__fish_complete_directories)"
complete -c start_server -l pid-file -d 'Write the process id of start_server to this file, and lock it.' -r -F
complete -c start_server -l status-file -d 'Write a line GENERATION:PID to this file for each running server.' -r -F
complete -c start_server -l log-file -d 'Append stdout and stderr of start_server and the server to this file. With "| COMMAND", pipe them to a shell command instead.' -r -F
complete -c start_server -l log-stream -d 'Log only this output of the server to --log-file (default: both). Repeatable; takes a comma-separated list.' -r -f -a "stdout\t''
stderr\t''"
complete -c start_server -l log-format -d 'How to write each line, whoever wrote it: as it is (text, the default), or as a JSON object with all that is known about it. With json, but neither --log-file nor --syslog, all output goes to stderr.' -r
complete -c start_server -l syslog -d 'Send every line to syslog: the messages of start_server, and the output of the server with its process id and generation. FACILITY is a name such as daemon (default) or local0.' -r
complete -c start_server -l syslog-tag -d 'The tag of each record (default: the server program\'s name).' -r
complete -c start_server -l syslog-address -d 'The unix socket or UDP port where syslog listens (default: /dev/log).' -r -F
complete -c start_server -l syslog-format -d 'The format of the records (default: rfc3164).' -r -f -a "rfc3164\t''
rfc5424\t''"
complete -c start_server -l syslog-stream -d 'Send only this output of the server to syslog (default: both).' -r -f -a "stdout\t''
stderr\t''"
complete -c start_server -l user -d 'Run as this user, a name or number, once the listeners are open.' -r -f -a "(__fish_complete_users)"
complete -c start_server -l group -d 'Run as this group, a name or number (default: the user\'s groups).' -r
complete -c start_server -l canary -d 'With --restart, where the server runs with --switch: give the new one only this share of new connections, 1% to 99%, until --promote or --rollback. If it dies or is unhealthy, the old one gets them all.' -r
complete -c start_server -l canary-by -d 'With --canary: choose its connections by chance (random, the default), or by source address, so that each client stays with one server.' -r
complete -c start_server -l canary-time -d 'With --canary: promote it after this time without a fault, a whole number of seconds (default: never).' -r
complete -c start_server -l scale -d 'Let the start_server that holds --pid-file run this many servers side by side, and wait until they serve.' -r
complete -c start_server -l timeout -d 'The longest that these commands wait (default: no limit).' -r
complete -c start_server -l no-pin -d 'When a server has died, start what is on disk by then. By default the program, directory and environment that have served come back, and only a restart looks at the disk.'
complete -c start_server -l check-first -d 'Run --check before the very first start too.'
complete -c start_server -l guardian -d 'Watch the supervisor from the process that was started: if it is killed, another one goes on with the same servers and listeners.'
complete -c start_server -l cpu-affinity -d 'With --switch and --workers: bind each server to some of the CPUs, and give it the connections that arrive on these.'
complete -c start_server -l log-timestamps -d 'Prefix each line of --log-file with time, generation and process id.'
complete -c start_server -l quiet -d 'Write no messages of start_server itself to stderr, except why it failed. Of the commands below only --status, and --restart and --rollback with --json, then print anything when they succeed.'
complete -c start_server -l daemonize -d 'Run in the background. Needs --log-file or --syslog.'
complete -c start_server -l keep-env -d 'Leave the server root\'s HOME, USER, LOGNAME, SHELL, MAIL and XDG_*. By default the first four are those of --user, the others are unset.'
complete -c start_server -l strict -d 'Fail instead of warning if any confinement is unavailable.'
complete -c start_server -l restart -d 'Send HUP to the start_server that holds --pid-file, and wait until a new server has replaced the old one. Options for a start have no effect.'
complete -c start_server -l promote -d 'Give all new connections to the server that --restart --canary has started, and wait until it serves alone.'
complete -c start_server -l rollback -d 'Undo the last restart: the server that it replaced goes on if it has not been told to stop yet, and is started again if it is gone. Wait until it serves alone.'
complete -c start_server -l abort -d 'Give up a restart that is under way or has failed and is tried again; what serves goes on until the next restart.'
complete -c start_server -l no-wait -d 'With --restart, --promote, --rollback or --abort: return as soon as the server serves, and do not wait for the one that it replaces.'
complete -c start_server -l upgrade -d 'Send USR2 to the start_server that holds --pid-file: the program file that lies in its place by now goes on in the same process, with the same options, listeners and servers. Wait until it does.'
complete -c start_server -l stop -d 'Send TERM to the start_server that holds --pid-file, and wait until it has exited. Options for a start have no effect.'
complete -c start_server -l reopen -d 'Send USR1 to the start_server that holds --pid-file, and wait until it has reopened --log-file. Options for a start have no effect.'
complete -c start_server -l status -d 'Print what the start_server that holds --pid-file is doing, with its listeners and workers. Options for a start have no effect.'
complete -c start_server -l follow -d 'With --status: redraw it once a second, until Ctrl-C.'
complete -c start_server -l json -d 'With --status: print it as JSON. With --restart, --promote, --rollback or --abort: print the verdict.'
complete -c start_server -l openmetrics -d 'With --status: print it as OpenMetrics text, for scrapers.'
complete -c start_server -l check-config -d 'Say what a start with the other options would do, and everything that would keep it from that. Binds nothing, writes nothing, runs nothing.'
complete -c start_server -l self-test -d 'Start servers, try to break out of each of their processes, and report what holds on this host. Allows only --user, --group and --strict.'
complete -c start_server -s h -l help -d 'Print this help.'
complete -c start_server -s V -l version -d 'Print the version.'
