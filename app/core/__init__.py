"""The deciding half of the gateway: values in, values and commands out.

Nothing here imports asyncio, a clock, randomness, logging or the network; ``tests/test_layering.py`` enforces this.
"""
