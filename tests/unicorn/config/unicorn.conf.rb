# unicorn below start_server, with a slow restart: each new worker takes the place of one old worker.
#
#   start_server --port=10080 --signal-on-hup=CONT --status-file=log/unicorn.stat --dir=/path/to/app \
#     -- unicorn -c config/unicorn.conf.rb config.ru
#
# start_server sends CONT, which does nothing, to the old master; the new workers tell it when to go.

require 'json'

worker_processes 2

# The application is loaded before the workers are forked: what cannot be loaded never gets as far as `after_fork`,
# so that it does not end the generation that works.
preload_app true

# unicorn takes over the listeners that UNICORN_FD names. The name of a listener may hold a `=`, a number cannot.
if (listeners = ENV['SERVER_STARTER_PORT'])
  ENV['UNICORN_FD'] = listeners.split(';').map { |listener| listener[/\d+\z/] }.join(',')
end

# start_server makes the status file relative to the folder that it was started in, and `--dir` changes only the
# folder of this program: where these are two folders, UNICORN_STATUS_FILE says where the file is.
status_file = ENV.fetch('UNICORN_STATUS_FILE') { File.expand_path('../log/unicorn.stat', __dir__) }
generation = ENV['SERVER_STARTER_GENERATION'].to_i

# The master of each generation whose place this one takes: with --workers a generation has several, and which of them has
# which number stands only in the file beside the status file.
masters_before = lambda do
  next File.readlines(status_file).to_h { |line| line.split(':').map(&:to_i) } if ENV['SERVER_STARTER_WORKERS'].to_i < 2

  JSON.parse(File.read("#{status_file}.json"))['generations'].filter_map do |one|
    its = one['workers'].find { |worker| worker['slot'] == ENV['SERVER_STARTER_WORKER'].to_i }
    [one['number'], its['pid']] if its
  end.to_h
end

# In the worker, not in the master by `before_fork`: there is no worker yet when that one is called, and the old
# master would give up one of its own for nothing.
after_fork do |server, worker|
  masters = masters_before.call
  # Usually it is the one before ours, but a generation that failed to start leaves a gap.
  previous = masters.keys.select { |number| number < generation }.max
  if previous
    last = worker.nr + 1 >= server.worker_processes
    signal = last ? :QUIT : :TTOU
    Process.kill(signal, masters[previous])
    server.logger.info("worker=#{worker.nr} of generation #{generation} sent #{signal} to generation #{previous}")
  end
rescue Errno::ENOENT
  # The first generation: there is no status file before it has settled.
rescue Errno::ESRCH
  # It is gone already.
end
