package plugin

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/ryanuber/go-glob"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// connectionRecord is what operations may know of a connection, apart from how
// to log in to it.
type connectionRecord struct {
	Labels map[string]string `json:"labels"`
	Zone   string            `json:"zone"`
	// Agents are names or globs of the agents that may work on it; none means
	// every agent.
	Agents         []string                `json:"agents"`
	Protected      bool                    `json:"protected"`
	OperationsOnly bool                    `json:"operations_only"`
	Purposes       map[wire.Purpose]string `json:"purposes"` // role names
	// Database is the one operations work on, when it is not that of
	// connection_url; Address is host:port as agents reach it, when it is not.
	Database string          `json:"database"`
	Address  string          `json:"address"`
	Identity *identityRecord `json:"identity,omitempty"`
}

// identityRecord is where a connection led when it was last inspected.
type identityRecord struct {
	wire.ServerIdentity
	// Config is the digest of the config it was seen with. Under the same config
	// another server must not appear.
	Config string `json:"config"`
}

// factsDigest is the digest of everything a person set.
func (c connectionRecord) factsDigest() (string, error) {
	c.Identity = nil
	content, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("encode connection: %w", err)
	}
	return wire.Digest(content), nil
}

// permits tells whether the agent may work on the connection.
func (c connectionRecord) permits(agent string) bool {
	return len(c.Agents) == 0 || slices.ContainsFunc(c.Agents, func(g string) bool { return glob.Glob(g, agent) })
}

// connectionFacts returns what connections/:name holds; known is false when
// nothing was written there.
func (b *backend) connectionFacts(ctx context.Context, s logical.Storage, name string) (c connectionRecord, known bool, err error) {
	if err := b.loadOperations(ctx, s); err != nil {
		return connectionRecord{}, false, err
	}
	b.ops.mu.RLock()
	defer b.ops.mu.RUnlock()
	c, known = b.ops.connections[name]
	return c, known, nil
}

// refuseOperationsOnly is the answer of creds/ and static-creds/ on a connection
// that gives logins to operations only.
func (b *backend) refuseOperationsOnly(ctx context.Context, s logical.Storage, connection string) error {
	c, _, err := b.connectionFacts(ctx, s, connection)
	if err != nil {
		return err
	}
	if c.OperationsOnly {
		return &wire.Error{
			Code: wire.CodeDenied, Rule: "operations_only",
			Reason: fmt.Sprintf("connection %s gives logins to operations only", connection),
		}
	}
	return nil
}

// operationEndpoint is the endpoint operations use: that of the config with the
// database and address of connections/:name.
func (b *backend) operationEndpoint(ctx context.Context, s logical.Storage, name string) (wire.Endpoint, connectionRecord, string, error) {
	facts, known, err := b.connectionFacts(ctx, s, name)
	if err != nil {
		return wire.Endpoint{}, connectionRecord{}, "", err
	}
	if !known {
		return wire.Endpoint{}, connectionRecord{}, "", &wire.Error{
			Code: wire.CodeNotFound, Reason: fmt.Sprintf("connection %q is not described for operations", name),
			Hint: "write connections/" + name + " with its purposes",
		}
	}
	ep, digest, err := b.ops.accounts.endpoint(ctx, s, name)
	if err != nil {
		return wire.Endpoint{}, connectionRecord{}, "", err
	}
	ep.Connection = name
	if facts.Database != "" {
		ep.Database = facts.Database
	}
	if facts.Address != "" {
		host, port, err := splitAddress(facts.Address)
		if err != nil {
			return wire.Endpoint{}, connectionRecord{}, "", err
		}
		ep.Host, ep.Port = host, port
	}
	return ep, facts, digest, nil
}

func splitAddress(address string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return "", 0, invalidField("address", "%q is not host:port", address)
	}
	port, err = strconv.Atoi(text)
	if err != nil || port < 1 || port > 65535 {
		return "", 0, invalidField("address", "%q has no port from 1 to 65535", address)
	}
	return host, port, nil
}

func (b *backend) connectionPaths() []*framework.Path {
	return []*framework.Path{{
		Pattern:         "connections/?$",
		Callbacks:       map[logical.Operation]framework.OperationFunc{logical.ListOperation: b.pathConnectionList},
		HelpSynopsis:    "Names of the connections that are described for operations.",
		HelpDescription: "Lists what was written below connections/. How to log in stands in config/.",
	}, {
		Pattern: "connections/" + framework.GenericNameRegex("name") + "$",
		Fields: map[string]*framework.FieldSchema{
			"name":            {Type: framework.TypeString, Description: "Name of the connection, as in config/."},
			"labels":          {Type: framework.TypeKVPairs, Description: "Labels that policies select by."},
			"zone":            {Type: framework.TypeString, Description: "Where the server stands."},
			"agents":          {Type: framework.TypeCommaStringSlice, Description: "Names or globs of the agents that may work on it; every agent when empty."},
			"protected":       {Type: framework.TypeBool, Description: "Refuse it as a target unless a policy has allow_protected_target."},
			"operations_only": {Type: framework.TypeBool, Description: "Refuse creds/ and static-creds/ on it."},
			"purposes":        {Type: framework.TypeKVPairs, Description: "Roles of operations: inspect, and read for sources, write for targets."},
			"database":        {Type: framework.TypeString, Description: "Database that operations work on; that of connection_url when empty. A target's need not exist yet."},
			"address":         {Type: framework.TypeString, Description: "host:port as agents reach the server; that of connection_url when empty."},
			"forget_identity": {Type: framework.TypeBool, Description: "Forget which server the connection led to. Needed once when the server was replaced under the same config."},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation:   &framework.PathOperation{Callback: b.pathConnectionRead},
			logical.UpdateOperation: &framework.PathOperation{Callback: b.pathConnectionWrite, ForwardPerformanceStandby: true},
			logical.DeleteOperation: &framework.PathOperation{Callback: b.pathConnectionDelete, ForwardPerformanceStandby: true},
		},
		HelpSynopsis: "What operations may know of a connection.",
		HelpDescription: `
Labels, protection and the roles that operations use on a connection, apart from
config/ so that one person need not be able to both re-point and relabel it.
Fields that are not given keep their value. A read also answers the identity of
the server as an operation last saw it.`,
	}}
}

func (b *backend) pathConnectionList(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	if err := b.loadOperations(ctx, req.Storage); err != nil {
		return nil, err
	}
	b.ops.mu.RLock()
	names := slices.Sorted(maps.Keys(b.ops.connections))
	b.ops.mu.RUnlock()
	return logical.ListResponse(names), nil
}

func (b *backend) pathConnectionRead(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	c, known, err := b.connectionFacts(ctx, req.Storage, fieldOf[string](d, "name"))
	if err != nil || !known {
		return nil, err
	}
	if c.Agents == nil {
		c.Agents = []string{}
	}
	data, err := responseData(c)
	if err != nil {
		return nil, err
	}
	return &logical.Response{Data: data}, nil
}

func (b *backend) pathConnectionWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	name := fieldOf[string](d, "name")
	if err := b.loadOperations(ctx, req.Storage); err != nil {
		return nil, err
	}
	return nil, b.updateConnection(ctx, req.Storage, name, func(c *connectionRecord) error {
		if v, ok := fieldGiven[map[string]string](d, "labels"); ok {
			c.Labels = pairs(v)
		}
		if v, ok := fieldGiven[string](d, "zone"); ok {
			c.Zone = v
		}
		if v, ok := fieldGiven[[]string](d, "agents"); ok {
			c.Agents = v
		}
		if v, ok := fieldGiven[bool](d, "protected"); ok {
			c.Protected = v
		}
		if v, ok := fieldGiven[bool](d, "operations_only"); ok {
			c.OperationsOnly = v
		}
		if v, ok := fieldGiven[map[string]string](d, "purposes"); ok {
			c.Purposes = map[wire.Purpose]string{}
			for purpose, role := range pairs(v) {
				switch p := wire.Purpose(purpose); p {
				case wire.PurposeInspect, wire.PurposeRead, wire.PurposeWrite:
					c.Purposes[p] = role
				default:
					return invalidField("purposes", "%q is not a purpose; known are inspect, read and write", purpose)
				}
			}
		}
		if v, ok := fieldGiven[string](d, "database"); ok {
			c.Database = v
		}
		if v, ok := fieldGiven[string](d, "address"); ok {
			c.Address = v
			if c.Address != "" {
				if _, _, err := splitAddress(c.Address); err != nil {
					return err
				}
			}
		}
		if fieldOf[bool](d, "forget_identity") {
			c.Identity = nil
		}
		return nil
	})
}

// updateConnection changes a copy of the record and stores it; a missing one is
// made.
func (b *backend) updateConnection(ctx context.Context, s logical.Storage, name string, change func(*connectionRecord) error) error {
	defer b.ops.lock(prefixConnection + name)()
	b.ops.mu.RLock()
	c := b.ops.connections[name]
	b.ops.mu.RUnlock()
	if err := change(&c); err != nil {
		return err
	}
	if err := putStored(ctx, s, prefixConnection+name, c); err != nil {
		b.opsInvalidate(prefixConnection + name)
		return err
	}
	b.ops.mu.Lock()
	b.ops.connections[name] = c
	b.ops.mu.Unlock()
	return nil
}

func (b *backend) pathConnectionDelete(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	name := fieldOf[string](d, "name")
	if err := b.loadOperations(ctx, req.Storage); err != nil {
		return nil, err
	}
	if err := b.refuseWhileBusy(name); err != nil {
		return nil, err
	}
	defer b.ops.lock(prefixConnection + name)()
	if err := deleteStored(ctx, req.Storage, prefixConnection+name); err != nil {
		b.opsInvalidate(prefixConnection + name)
		return nil, err
	}
	b.ops.mu.Lock()
	delete(b.ops.connections, name)
	b.ops.mu.Unlock()
	return nil, nil
}

// refuseWhileBusy refuses when an operation is working on the connection or has
// to clean up there.
func (b *backend) refuseWhileBusy(connection string) error {
	for _, r := range b.ops.busyOperations() {
		if r.Source == connection || r.Target == connection {
			return &wire.Error{
				Code: wire.CodeConflict, Reason: fmt.Sprintf("operation %s is using connection %s", r.ID, connection),
				Hint: "wait for it or cancel it",
			}
		}
	}
	return nil
}
