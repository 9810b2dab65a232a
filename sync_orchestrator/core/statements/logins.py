"""The statements of logins that all processes share."""

ENSURE = "INSERT INTO sync.logins (system) VALUES (%(system)s) ON CONFLICT DO NOTHING"

PRESENT = """
SELECT number, mark, token, refresh, picked, coalesce(lease_until > sync.clock(), false) AS taken,
       EXTRACT(epoch FROM renew_at - sync.clock())::float8 AS renew_in
FROM sync.logins WHERE system = %(system)s FOR UPDATE
"""

LEASE = """
UPDATE sync.logins
SET lease_token = nextval('sync.ticket'), lease_until = sync.clock() + make_interval(secs => %(seconds)s)
WHERE system = %(system)s
RETURNING lease_token
"""

# Only the lease's token may say what the login gave; a login that came too late changes nothing.
KEEP = """
UPDATE sync.logins
SET number = lease_token, mark = %(mark)s, token = %(token)s, refresh = %(refresh)s, picked = %(picked)s,
    renew_at = sync.clock() + make_interval(secs => %(renew_in)s::float8), updated_at = sync.clock(),
    lease_token = NULL, lease_until = NULL
WHERE system = %(system)s AND lease_token = %(lease)s
RETURNING number
"""

RELEASE = """
UPDATE sync.logins SET lease_token = NULL, lease_until = NULL WHERE system = %(system)s AND lease_token = %(lease)s
"""
