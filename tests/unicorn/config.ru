# Answers each request with the generation that serves it and the pid of its unicorn master.

body = "#{ENV.fetch('SERVER_STARTER_GENERATION')} #{Process.pid}\n"

run ->(_env) { [200, { 'Content-Type' => 'text/plain', 'Content-Length' => body.bytesize.to_s }, [body]] }
