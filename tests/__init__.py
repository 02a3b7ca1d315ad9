import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports the hub's client, which reads it once
