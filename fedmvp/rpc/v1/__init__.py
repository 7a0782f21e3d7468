"""Generated from protos/fedmvp/v1 by tools/generate_protos.py; do not edit."""
