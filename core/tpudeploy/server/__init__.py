"""A loaded model behind an HTTP API that OpenAI's clients speak.

From the outside in: ``app`` and ``routes`` know HTTP and OpenAI's objects; ``service`` is what they ask, and all that
they know of models; ``local_service`` answers with workers of this process, each one thread that alone touches its
engine. docs/explanation/server.md
"""
