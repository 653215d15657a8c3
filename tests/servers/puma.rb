# Otherwise puma, when it is told to stop, closes the connections that it has accepted but not read anything from.
queue_requests false
