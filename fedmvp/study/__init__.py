"""What a consortium agrees on and signs, who takes part, and how a server or a site is configured.

Nothing here opens a socket or touches a model: files and bytes come in, validated frozen values go out.
"""
