"""The statements of who may call the API service."""

MAKE = """
INSERT INTO sync.api_keys (id, name, secret, scopes, expires_at)
VALUES (%(id)s, %(name)s, %(secret)s, %(scopes)s, sync.clock() + make_interval(secs => %(lifetime)s))
"""

FIND = """
SELECT id, name, secret, scopes FROM sync.api_keys
WHERE id = %(id)s AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > sync.clock())
"""

USED = """
UPDATE sync.api_keys SET used_at = sync.clock()
WHERE id = %(id)s AND (used_at IS NULL OR used_at < sync.clock() - interval '1 minute')
"""

ALL = "SELECT id, name, scopes, created_at, expires_at, revoked_at, used_at FROM sync.api_keys ORDER BY created_at, id"

REVOKE = """
UPDATE sync.api_keys SET revoked_at = coalesce(revoked_at, sync.clock()) WHERE id = %(id)s RETURNING id
"""
