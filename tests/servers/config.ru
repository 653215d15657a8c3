# The application below unicorn and puma: each answer names the generation that serves.

run lambda { |_env|
  body = "generation #{ENV.fetch('SERVER_STARTER_GENERATION')}\n"
  [200, { 'Content-Type' => 'text/plain', 'Content-Length' => body.bytesize.to_s }, [body]]
}
