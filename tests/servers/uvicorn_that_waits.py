"""uvicorn, with the patience that it lacks by itself.

Told to stop, it closes every connection of which it has not read a request yet, and forgets those that it has only
just accepted. This one stops to accept, waits until each connection has brought its request, and only then goes on.
"""

import asyncio

import uvicorn


class Server(uvicorn.Server):
    async def shutdown(self, sockets=None):
        for server in self.servers:
            server.close()
        for _ in range(50):
            await asyncio.sleep(0.1)
            if all(connection.cycle for connection in self.server_state.connections):
                break
        await super().shutdown(sockets)


Server(uvicorn.Config("app:asgi", fd=3, lifespan="off")).run()
