package plugin

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

func newAuthority(t *testing.T) testenv.Authority {
	t.Helper()
	authority, err := testenv.NewAuthority()
	require.NoError(t, err)
	return authority
}

// signedBy is a credential_config of certificates.
func signedBy(a testenv.Authority, changes map[string]any) map[string]any {
	config := map[string]any{"ca_cert": string(a.Cert), "ca_private_key": string(a.Key), "key_type": "ec"}
	for key, value := range changes {
		config[key] = value
	}
	return config
}

// What a credential_config leaves open is filled in and shown; the authority's key
// never is.
func TestCredentialConfig_DefaultsAreShownAndTheKeyIsNot(t *testing.T) {
	t.Parallel()
	m := newMount(t, &logical.InmemStorage{})
	authority := newAuthority(t)
	read := func(data map[string]any) any {
		data["db_name"] = "prod"
		m.must(logical.CreateOperation, "roles/app", data)
		shown := m.must(logical.ReadOperation, "roles/app", nil).Data
		require.NotContains(t, shown, "ca_private_key")
		return shown["credential_config"]
	}
	require.Nil(t, read(map[string]any{}))
	require.Equal(t, map[string]any{"format": "pkcs8", "key_bits": 2048}, read(map[string]any{"credential_type": "rsa_private_key"}))
	require.Equal(t, map[string]any{"format": "pkcs8", "key_bits": 3072}, read(map[string]any{"credential_config": map[string]any{"key_bits": 3072}}))
	require.Equal(t, map[string]any{"format": "pkcs8", "key_bits": 3072}, read(map[string]any{"max_ttl": 60}), "an update keeps what it does not name")
	ec := map[string]any{
		"ca_cert": string(authority.Cert), "common_name_template": "{{.Username}}", "key_type": "ec", "key_bits": 256, "signature_bits": 256,
	}
	require.Equal(t, ec, read(map[string]any{"credential_type": "client_certificate", "credential_config": signedBy(authority, nil)}))
	require.Equal(t, ec, read(map[string]any{"max_ttl": 120}))

	// The key stays when what was read is written back, and goes with its authority.
	again := map[string]any{"ca_cert": string(authority.Cert), "key_type": "ec", "key_bits": 384}
	ec["key_bits"] = 384
	require.Equal(t, ec, read(map[string]any{"credential_config": again}))
	stored, err := loadRole(t.Context(), m.storage, "app")
	require.NoError(t, err)
	require.Equal(t, string(authority.Key), stored.CAPrivateKey)
	require.NotContains(t, stored.CredentialConfig, "ca_private_key")
	again["ca_cert"] = string(newAuthority(t).Cert)
	refusal, status := m.refused(logical.UpdateOperation, "roles/app", map[string]any{"credential_config": again})
	require.Equal(t, 400, status)
	require.Equal(t, "credential_config", refusal.Field)

	// Settings of one type are none of another's.
	require.Nil(t, read(map[string]any{"credential_type": "password"}))
	stored, err = loadRole(t.Context(), m.storage, "app")
	require.NoError(t, err)
	require.Empty(t, stored.CAPrivateKey)
}

// Every wrong setting is refused when the role is written, naming the field and
// nothing of the key.
func TestCredentialConfig_RefusalsNameTheField(t *testing.T) {
	t.Parallel()
	m := newMount(t, &logical.InmemStorage{})
	authority, other := newAuthority(t), newAuthority(t)
	leaf, err := testenv.NewCertificate("leaf.example.test")
	require.NoError(t, err)
	for name, changes := range map[string]map[string]any{
		"no authority":          {"ca_cert": ""},
		"no key":                {"ca_private_key": ""},
		"no key_type":           {"key_type": ""},
		"unknown key_type":      {"key_type": "dsa"},
		"key_bits of another":   {"key_bits": 2048},
		"key_bits no number":    {"key_bits": "planted"},
		"signature_bits":        {"signature_bits": 128},
		"unknown key":           {"ca_certificate": "planted"},
		"authority no PEM":      {"ca_cert": "planted"},
		"authority no CA":       {"ca_cert": string(leaf.Cert), "ca_private_key": string(leaf.Key)},
		"authority with a key":  {"ca_cert": string(authority.Cert) + string(authority.Key)},
		"key no PEM":            {"ca_private_key": "planted-key"},
		"key of another":        {"ca_private_key": string(other.Key)},
		"template broken":       {"common_name_template": "{{"},
		"template with nothing": {"common_name_template": "{{.Nonsense}}"},
	} {
		refusal, status := m.refused(logical.CreateOperation, "roles/app", map[string]any{
			"db_name": "prod", "credential_type": "client_certificate", "credential_config": signedBy(authority, changes),
		})
		require.Equal(t, 400, status, name)
		require.Equal(t, "credential_config", refusal.Field, name)
	}
	for _, config := range []map[string]any{{"key_bits": 1024}, {"format": "pkcs1"}, {"password_policy": "x"}} {
		refusal, _ := m.refused(logical.CreateOperation, "roles/app", map[string]any{
			"db_name": "prod", "credential_type": "rsa_private_key", "credential_config": config,
		})
		require.Equal(t, "credential_config", refusal.Field)
	}
}

// A certificate is for its login, for clients only, signed by the authority, and
// ends when the login would; keys are of the kind asked for.
func TestCertificateIssuer_IssuesForTheLogin(t *testing.T) {
	t.Parallel()
	authority := newAuthority(t)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(authority.Cert))
	for _, test := range []struct {
		config map[string]string
		check  func(key any) bool
	}{
		{map[string]string{"key_type": "rsa"}, func(key any) bool { k, ok := key.(*rsa.PublicKey); return ok && k.N.BitLen() == 2048 }},
		{map[string]string{"key_type": "ec", "key_bits": "384", "signature_bits": "512"}, func(key any) bool { k, ok := key.(*ecdsa.PublicKey); return ok && k.Params().BitSize == 384 }},
		{map[string]string{"key_type": "ed25519"}, func(key any) bool { _, ok := key.(ed25519.PublicKey); return ok }},
	} {
		test.config["ca_cert"] = string(authority.Cert)
		issuer, err := newCertificateIssuer(test.config, wire.NewSecret(string(authority.Key)))
		require.NoError(t, err)
		name, err := issuer.name(commonNameData{Username: "dbops-user"})
		require.NoError(t, err)
		until := time.Now().Add(time.Hour)
		issued, err := issuer.issue(name, until)
		require.NoError(t, err)
		require.Equal(t, test.config["key_type"], issued.KeyType)
		_, err = tls.X509KeyPair([]byte(issued.Certificate), []byte(issued.PrivateKey.Reveal()))
		require.NoError(t, err)
		block, _ := pem.Decode([]byte(issued.Certificate))
		certificate, err := x509.ParseCertificate(block.Bytes)
		require.NoError(t, err)
		require.True(t, test.check(certificate.PublicKey), "%T", certificate.PublicKey)
		require.Equal(t, "CN=dbops-user", certificate.Subject.String())
		require.WithinDuration(t, until, certificate.NotAfter, time.Second)
		require.Equal(t, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, certificate.ExtKeyUsage)
		require.False(t, certificate.IsCA)
		_, err = certificate.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		require.NoError(t, err)

		_, err = issuer.issue(name, time.Now().Add(48*time.Hour))
		require.ErrorContains(t, err, "ends at", "a certificate that outlives its authority is worth nothing")
	}
	for template, name := range map[string]string{
		"{{.RoleName}}-{{.DisplayName}}": "app-alice", "{{.Username | uppercase}}": "U", "{{.EntityMetadata.team}}x": "x",
	} {
		issuer := certificateIssuer{commonName: template}
		made, err := issuer.name(commonNameData{usernameData: usernameData{RoleName: "app", DisplayName: "alice"}, Username: "u"})
		require.NoError(t, err)
		require.Equal(t, name, made)
	}
	for _, template := range []string{"{{.EntityName}}", strings.Repeat("x", 65), "a\nb"} {
		_, err := (&certificateIssuer{commonName: template}).name(commonNameData{Username: "u"})
		require.ErrorContains(t, err, "printable", template)
	}
}

// pair is what a login authenticates with.
func pair(t *testing.T, data map[string]any) []tls.Certificate {
	t.Helper()
	require.NotContains(t, data, "password")
	certificate, err := tls.X509KeyPair([]byte(data["client_certificate"].(string)), []byte(data["private_key"].(string)))
	require.NoError(t, err)
	require.Equal(t, "ec", data["private_key_type"])
	return []tls.Certificate{certificate}
}

// A certificate logs in to PostgreSQL by a line of pg_hba.conf with cert, as
// nobody else, without it nobody does, and once the lease has ended nobody does.
func TestClientCertificate_PostgreSQL(t *testing.T) {
	t.Parallel()
	authority := newAuthority(t)
	p := testenv.Postgres(t, testenv.PostgresOptions{
		ServerName: "db.example.test", RequireTLS: true, ClientCA: authority.Cert,
		HBA: []string{"hostssl all +by_certificate all cert"},
	})
	p.Exec("postgres", `CREATE ROLE by_certificate NOLOGIN`, `CREATE ROLE dbops_root LOGIN SUPERUSER PASSWORD '`+rootPassword+`'`)
	m := newMount(t, &logical.InmemStorage{})
	m.configure("prod", p)
	m.must(logical.CreateOperation, "roles/app", map[string]any{
		"db_name": "prod", "default_ttl": "10m", "credential_type": "client_certificate", "credential_config": signedBy(authority, nil),
		"creation_statements": `CREATE ROLE "{{name}}" LOGIN VALID UNTIL '{{expiration}}' IN ROLE by_certificate`,
	})
	first, second := m.must(logical.ReadOperation, "creds/app", nil), m.must(logical.ReadOperation, "creds/app", nil)
	require.False(t, first.Secret.Renewable, "a certificate cannot be made longer")
	enter := func(username string, certificates []tls.Certificate) (string, error) {
		config := p.ConnConfig("postgres")
		config.User, config.Password, config.TLSConfig.Certificates = username, "", certificates
		conn, err := pgx.ConnectConfig(t.Context(), config)
		if err != nil {
			return "", err
		}
		defer func() { _ = conn.Close(context.Background()) }()
		var name string
		err = conn.QueryRow(t.Context(), `SELECT session_user::text`).Scan(&name)
		return name, err
	}
	username := first.Data["username"].(string)
	name, err := enter(username, pair(t, first.Data))
	require.NoError(t, err)
	require.Equal(t, username, name)
	_, err = enter(username, pair(t, second.Data))
	require.Error(t, err, "another login's certificate")
	_, err = enter(username, nil)
	require.Error(t, err, "no certificate")

	_, err = m.revoke(first.Secret)
	require.NoError(t, err)
	_, err = enter(username, pair(t, first.Data))
	require.Error(t, err, "the lease has ended")
	_, err = enter(second.Data["username"].(string), pair(t, second.Data))
	require.NoError(t, err)
	require.NotContains(t, m.log.String(), "PRIVATE KEY")
}

// The same on MariaDB by REQUIRE SUBJECT. Statements that do not name the
// certificate would let in anybody, and are refused.
func TestClientCertificate_MySQL(t *testing.T) {
	t.Parallel()
	authority := newAuthority(t)
	server := testenv.MariaDB(t, testenv.MariaDBOptions{ServerName: "db.example.test", ClientCA: authority.Cert})
	server.Exec("", `CREATE USER 'dbops_root'@'%' IDENTIFIED BY '`+rootPassword+`'; GRANT ALL ON *.* TO 'dbops_root'@'%' WITH GRANT OPTION`)
	m := newMount(t, &logical.InmemStorage{})
	m.must(logical.CreateOperation, "config/prod", map[string]any{
		"plugin_name": mysqlPluginName, "connection_url": server.ConnectionURL(""), "username": "dbops_root", "password": rootPassword, "allowed_roles": "*",
	})
	role := map[string]any{"db_name": "prod", "credential_type": "client_certificate", "credential_config": signedBy(authority, nil)}
	for _, open := range []string{
		`CREATE USER '{{name}}'@'%'`, `CREATE USER '{{name}}'@'%' REQUIRE X509`,
		`CREATE USER '{{name}}'@'%' IDENTIFIED BY '{{password}}' REQUIRE SUBJECT '/CN={{common_name}}'`,
	} {
		role["creation_statements"] = open
		m.must(logical.UpdateOperation, "roles/app", role)
		refusal, _ := m.refused(logical.ReadOperation, "creds/app", nil)
		require.Equal(t, wire.CodeInvalid, refusal.Code, open)
	}
	role["creation_statements"] = `CREATE USER '{{name}}'@'{{host}}' REQUIRE SUBJECT '/CN={{common_name}}'`
	m.must(logical.UpdateOperation, "roles/app", role)
	first, second := m.must(logical.ReadOperation, "creds/app", nil), m.must(logical.ReadOperation, "creds/app", nil)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(server.Certificate.CA))
	enter := func(username string, certificates []tls.Certificate) error {
		config := mysql.NewConfig()
		config.User, config.Net, config.Addr, config.Logger = username, "tcp", server.Address(), &mysql.NopLogger{}
		config.TLS = &tls.Config{RootCAs: roots, ServerName: "db.example.test", Certificates: certificates}
		connector, err := mysql.NewConnector(config)
		require.NoError(t, err)
		db := sql.OpenDB(connector)
		defer func() { _ = db.Close() }()
		return db.PingContext(t.Context())
	}
	username := first.Data["username"].(string)
	require.NoError(t, enter(username, pair(t, first.Data)))
	require.Error(t, enter(username, pair(t, second.Data)), "another login's certificate")
	require.Error(t, enter(username, nil), "no certificate")
	_, err := m.revoke(first.Secret)
	require.NoError(t, err)
	require.Error(t, enter(username, pair(t, first.Data)), "the lease has ended")
}

// A key whose public half the statements do not use is worth nothing, so none is
// given out; where they use it, the server gets the one that belongs to it.
func TestRSAPrivateKey_IsBoundToTheLogin(t *testing.T) {
	t.Parallel()
	p := database(t)
	m := newMount(t, &logical.InmemStorage{})
	m.configure("prod", p)
	m.must(logical.CreateOperation, "roles/app", map[string]any{
		"db_name": "prod", "credential_type": "rsa_private_key", "creation_statements": createLogin,
	})
	refusal, status := m.refused(logical.ReadOperation, "creds/app", nil)
	require.Equal(t, 400, status)
	require.Contains(t, refusal.Reason, "{{public_key}}")
	require.Equal(t, "0", logins(t, p))
	require.Empty(t, keys(t, m.storage, prefixAccount))

	m.must(logical.UpdateOperation, "roles/app", map[string]any{
		"creation_statements": `CREATE ROLE "{{name}}" LOGIN; COMMENT ON ROLE "{{name}}" IS '{{public_key}}'`,
	})
	response := m.must(logical.ReadOperation, "creds/app", nil)
	require.NotContains(t, response.Data, "password")
	block, _ := pem.Decode([]byte(response.Data["rsa_private_key"].(string)))
	require.Equal(t, "PRIVATE KEY", block.Type)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	require.NoError(t, err)
	public, _ := pem.Decode([]byte(p.Value("postgres", `SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = $1`, response.Data["username"])))
	at, err := x509.ParsePKIXPublicKey(public.Bytes)
	require.NoError(t, err)
	require.True(t, key.(*rsa.PrivateKey).PublicKey.Equal(at))
	_, err = m.revoke(response.Secret)
	require.NoError(t, err)
	require.Equal(t, "0", logins(t, p))
}

// Redis knows passwords only.
func TestCredentialTypes_RedisTakesPasswordsOnly(t *testing.T) {
	t.Parallel()
	r := testenv.Redis(t, testenv.RedisOptions{})
	m := newMount(t, &logical.InmemStorage{})
	m.must(logical.CreateOperation, "config/prod", map[string]any{
		"plugin_name": redisPluginName, "host": r.Host, "port": r.Port, "username": r.User, "password": r.Password, "allowed_roles": "*",
	})
	for kind, config := range map[string]map[string]any{"rsa_private_key": {}, "client_certificate": signedBy(newAuthority(t), nil)} {
		m.must(logical.CreateOperation, "roles/app", map[string]any{"db_name": "prod", "credential_type": kind, "credential_config": config})
		refusal, _ := m.refused(logical.ReadOperation, "creds/app", nil)
		require.Equal(t, wire.CodeUnsupported, refusal.Code, kind)
	}
}
