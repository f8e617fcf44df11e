"""The only package that knows CRIU: its RPC session, the two gates, image files, statistics, features and logs."""
