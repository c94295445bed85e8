package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/hashicorp/vault/api"
	"github.com/jackc/pgx/v5"
)

// floor is a part of the work alone: no engine is faster than its slowest part.
type floor struct {
	samples

	name    string
	clients int
	once    func(client int) error
}

func (f *floor) measure(s *stand) {
	s.must(f.run(f.clients, s.cell, f.once), "%s", f.name)
}

// floors are bare role creations at the server and bare reads through Vault.
func (s *stand) floors() []*floor {
	var sessions []*pgx.Conn
	for range manyClients {
		sessions = append(sessions, s.postgres.Connect("postgres"))
	}
	var floors []*floor
	for _, iterations := range []int{4096, 1} {
		for _, clients := range []int{1, manyClients} {
			var numbers [manyClients]int
			floors = append(floors, &floor{
				name: fmt.Sprintf("CREATE ROLE, %d iterations", iterations), clients: clients,
				once: func(client int) error {
					numbers[client]++
					statement := fmt.Sprintf(`CREATE ROLE "floor_%d_%d_%d_%d" LOGIN PASSWORD '%s' VALID UNTIL '2100-01-01'`,
						iterations, clients, client, numbers[client], verifier(iterations))
					return sessions[client].PgConn().Exec(context.Background(), statement).Close()
				},
			})
		}
	}
	for _, clients := range []int{1, manyClients} {
		floors = append(floors, &floor{
			name: "read of " + s.vault.Mount + "/info", clients: clients,
			once: func(client int) error {
				_, err := s.clients[client].Logical().Read(s.vault.Mount + "/info")
				return err
			},
		})
	}
	s.ssh()
	for _, clients := range []int{1, manyClients} {
		floors = append(floors, &floor{
			name: "lease of Vault's ssh engine", clients: clients,
			once: func(client int) error {
				secret, err := s.clients[client].Logical().Write(sshCreds, map[string]any{"ip": "127.0.0.1"})
				if err == nil && secret.LeaseID == "" {
					err = errors.New("no lease")
				}
				return err
			},
		})
	}
	return floors
}

// sshCreds leases one-time passwords that no server has to be asked for: what is
// left is Vault's own work for a lease, and one write to its storage.
const sshCreds = "ssh/creds/floor"

func (s *stand) ssh() {
	s.must(s.vault.Client.Sys().Mount("ssh", &api.MountInput{Type: "ssh"}), "mount ssh")
	_, err := s.vault.Client.Logical().Write("ssh/roles/floor", map[string]any{
		"key_type": "otp", "default_user": "nobody", "cidr_list": "127.0.0.0/8",
	})
	s.must(err, "configure ssh")
}

// verifier looks like one of PostgreSQL's, of no password anybody knows; the
// server does the same work on it as on a real one.
func verifier(iterations int) string {
	const key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, strings.Repeat("A", 22)+"==", key, key)
}
