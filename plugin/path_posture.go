package plugin

import (
	"context"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/posture"
)

func (b *backend) posturePaths() []*framework.Path {
	maxAge := &framework.FieldSchema{
		Type: framework.TypeDurationSecond, Default: int(lookKept / time.Second), Query: true,
		Description: "How old what was seen on a server may be, 30 seconds by default; 0 looks again.",
	}
	return []*framework.Path{{
		Pattern:      "posture/?$",
		Fields:       map[string]*framework.FieldSchema{"max_age": maxAge},
		Callbacks:    map[logical.Operation]framework.OperationFunc{logical.ReadOperation: b.pathPostureRead},
		HelpSynopsis: "What is weak about the mount, its connections and their servers.",
		HelpDescription: `
Looks at the live servers of all connections, side by side, and answers findings
with severity, subject, what was seen and a remedy, and a score from 0 to 100 with
the deductions that led to it. It answers within 5 seconds: a server that has not
answered by then is a finding, and so is what the connection's login may not see.`,
	}, {
		Pattern: "posture/" + framework.GenericNameRegex("name") + "$",
		Fields: map[string]*framework.FieldSchema{
			"name":    {Type: framework.TypeString, Description: "Name of the connection."},
			"max_age": maxAge,
		},
		Callbacks:       map[logical.Operation]framework.OperationFunc{logical.ReadOperation: b.pathPostureConnectionRead},
		HelpSynopsis:    "What is weak about one connection and its server.",
		HelpDescription: "As posture, for one connection. The score is that of its own findings.",
	}}
}

func (b *backend) pathPostureRead(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	names, err := listStored(ctx, req.Storage, prefixConfig)
	if err != nil {
		return nil, err
	}
	var connections []*connection
	known := make(map[string]bool, len(names))
	for _, name := range names {
		c, err := b.connections.get(ctx, req.Storage, name)
		if err != nil {
			return nil, err
		}
		if c != nil {
			connections, known[name] = append(connections, c), true
		}
	}
	b.looks.keep(known)
	mount, err := b.postureMount(ctx, req.Storage, connections)
	if err != nil {
		return nil, err
	}
	return b.answerPosture(ctx, req, data, connections, mount, true)
}

func (b *backend) pathPostureConnectionRead(ctx context.Context, req *logical.Request, data *framework.FieldData) (*logical.Response, error) {
	c, err := b.connections.get(ctx, req.Storage, field[string](data, "name"))
	if err != nil || c == nil {
		return nil, err
	}
	mount, err := b.postureMount(ctx, req.Storage, []*connection{c})
	if err != nil {
		return nil, err
	}
	return b.answerPosture(ctx, req, data, []*connection{c}, mount, false)
}

// answerPosture looks at the servers of connections and judges what was seen, with
// everything else of the mount when whole is set.
func (b *backend) answerPosture(ctx context.Context, req *logical.Request, data *framework.FieldData, connections []*connection, mount posture.Mount, whole bool) (*logical.Response, error) {
	maxAge, err := durationOf(data, "max_age", field[int](data, "max_age"))
	if err != nil {
		return nil, err
	}
	b.lookAt(ctx, connections, maxAge)

	findings := mount.Findings()
	if !whole {
		findings = mount.Connection(mount.Connections[0])
	}
	answer := posture.Judge(nil)
	looks := answer.Looks
	for _, c := range connections {
		seen, look, err := b.serverFindings(ctx, req.Storage, c)
		if err != nil {
			return nil, err
		}
		findings = append(findings, seen...)
		if look != nil {
			looks = append(looks, *look)
		}
	}
	answer = posture.Judge(findings)
	answer.Looks = looks
	content, err := responseData(answer)
	if err != nil {
		return nil, err
	}
	return &logical.Response{Data: content}, nil
}
