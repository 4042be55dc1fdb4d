#!/bin/sh
# Makes the roles of roles.sql, and gives them the passwords in the files dagster_password, platform_password and
# analyst_password of the folder $SECRETS. As the server's superuser, whom psql's own variables (PGHOST, ...) name.
# Postgres's container runs it when its data directory is new; on a server of your own, run it by hand.
set -eu

ROLES="${ROLES:-/etc/dlc-platform/postgres/roles.sql}"
SECRETS="${SECRETS:-/run/secrets}"

ask() {
    psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" \
        --dbname "${POSTGRES_DB:-dlc_platform}" "$@"
}

ask --file "$ROLES"
for role in dagster platform analyst; do
    file="$SECRETS/${role}_password"
    if [ ! -s "$file" ]; then
        echo "initialise.sh: $file is missing or empty; make it with make-secrets" >&2
        exit 1
    fi
    # psql reads the file itself, so that the password is in no command line; and the server must not log it.
    ask <<SQL
\\set password \`cat '$file'\`
set log_statement = none;
set log_min_error_statement = panic;
alter role $role password :'password';
SQL
done
