"""The endpoints, one module a group; each gives a router for :func:`tpudeploy.server.app.create_app`."""
