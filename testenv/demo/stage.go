package main

import (
	"crypto/rand"
	_ "embed"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/hashicorp/vault/api"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

//go:embed shop.sql
var shopSQL string

// stage is where the showing takes place.
type stage struct {
	vault          *testenv.VaultServer
	source, target *testenv.PostgresServer
	// passwords of Vault's own login on each server
	sourcePassword, targetPassword string
	auditFile                      string
	agentHCL                       string
	operator, connections, policy  *api.Client // one token for each duty
	alice, bob                     person
}

// startServers starts what a company has before dbops: a Vault and two database
// servers, one of them with data.
func (d *demo) startServers(scale int) *stage {
	d.step("A Vault and two PostgreSQL servers")
	s := &stage{sourcePassword: d.secret(), targetPassword: d.secret(), auditFile: d.dir + "/audit.log"}
	s.vault = testenv.Vault(d.t, testenv.VaultOptions{SkipPlugin: true, SkipAudit: true})
	d.say("   Vault         %s (real server, nothing of dbops in it yet)", s.vault.Address)
	s.source = testenv.Postgres(d.t, testenv.PostgresOptions{ServerName: "prod-db.demo.test", RequireTLS: true})
	s.target = testenv.Postgres(d.t, testenv.PostgresOptions{ServerName: "staging-db.demo.test", RequireTLS: true})
	d.say("   production    %s, TLS required", s.source.Address())
	d.say("   staging       %s, TLS required", s.target.Address())

	s.source.CreateDatabase("shop")
	s.source.Exec("shop", strings.ReplaceAll(shopSQL, "{{scale}}", strconv.Itoa(scale)), "ANALYZE")
	size := s.source.Value("shop", "SELECT pg_size_pretty(pg_database_size('shop'))")
	d.say("   filled the database shop in production: %s", size)

	d.step("The database administrator's part, once on each server")
	for _, line := range strings.Split(strings.TrimSpace(sourceRights), "\n") {
		d.say("   production=# %s", strings.ReplaceAll(line, "%s", "'…'"))
	}
	s.source.Exec("shop", fmt.Sprintf(sourceRights, "'"+s.sourcePassword+"'"))
	for _, line := range strings.Split(strings.TrimSpace(targetRights), "\n") {
		d.say("   staging=# %s", strings.ReplaceAll(line, "%s", "'…'"))
	}
	s.target.Exec("postgres", fmt.Sprintf(targetRights, "'"+s.targetPassword+"'"))
	s.target.Exec("postgres", "CREATE DATABASE shop OWNER dbops_owner")
	s.target.Exec("shop", "CREATE TABLE left_over_from_last_week (x integer)")
	return s
}

// secret is a random password.
func (d *demo) secret() string {
	content := make([]byte, 16)
	if _, err := rand.Read(content); err != nil {
		d.t.Fatalf("demo: %v", err)
	}
	return hex.EncodeToString(content)
}
