//! The promises of start_server, each a test that runs it. How to write one stands in the documentation of [`e2e`].

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod addresses;
mod attack_channel;
mod attack_group;
mod attack_kill;
mod attack_launcher;
mod attack_planted;
mod attack_worker;
mod background;
mod bad_input;
mod canary;
mod capture;
mod channel;
mod check;
mod check_config;
mod circumstances;
mod commands;
mod container_files;
mod containers;
mod defects;
mod defects_go;
mod defects_p5;
mod defects_ruby;
mod dialects;
mod disk_full;
mod drop_in;
mod environment;
mod fd_store;
mod files;
mod fuzz;
mod guardian;
mod handed_on;
mod holders;
mod house_rules;
mod install;
mod launch;
mod listener_health;
mod listeners;
mod lock_holder;
mod log_format;
mod logging;
mod manual;
mod many_real_servers;
mod many_workers;
mod php_fpm;
mod pid_namespaces;
mod pins;
mod policy;
mod presets;
mod privileges;
mod queues;
mod quic;
mod readiness;
mod readme;
mod real_readiness;
mod real_servers;
mod remedies;
mod restart;
mod restart_progress;
mod rollback;
mod rolling;
mod rooms;
mod root_files;
mod root_start;
mod rsyslog;
mod said;
mod scale;
mod self_test;
mod service_manager;
mod shards;
mod snapshots;
mod socket_activation;
mod status_command;
mod stop_first;
mod supervision;
mod switch;
mod syslog;
mod systemd;
mod systemd_never_down;
mod unicorn;
mod unit_files;
mod upgrade;
mod upgrade_broken;
mod upgrade_holds;
mod upgrade_output;
mod upgrade_under_way;
mod watch;
mod workers;
