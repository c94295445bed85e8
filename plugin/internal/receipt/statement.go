package receipt

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"

	attestation "github.com/in-toto/attestation/go/v1"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Statement is the in-toto statement about an operation, as compact JSON. Its
// subjects are the request, and the plan and the report where there are any.
func Statement(r wire.Receipt) ([]byte, error) {
	content, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode receipt: %w", err)
	}
	predicate := new(structpb.Struct)
	if err := protojson.Unmarshal(content, predicate); err != nil {
		return nil, fmt.Errorf("encode receipt: %w", err)
	}
	statement := &attestation.Statement{
		Type: attestation.StatementTypeUri, Subject: subjects(r), PredicateType: wire.ReceiptPredicateType, Predicate: predicate,
	}
	if err := statement.Validate(); err != nil {
		return nil, fmt.Errorf("check statement: %w", err)
	}
	if content, err = protojson.Marshal(statement); err != nil {
		return nil, fmt.Errorf("encode statement: %w", err)
	}
	// protojson puts blanks where it pleases, so that nobody relies on its bytes.
	var compact bytes.Buffer
	if err := json.Compact(&compact, content); err != nil {
		return nil, fmt.Errorf("encode statement: %w", err)
	}
	return compact.Bytes(), nil
}

func subjects(r wire.Receipt) []*attestation.ResourceDescriptor {
	var all []*attestation.ResourceDescriptor
	add := func(name, digest string) {
		if sum, ok := strings.CutPrefix(digest, "sha256:"); ok {
			all = append(all, &attestation.ResourceDescriptor{Name: name, Digest: map[string]string{"sha256": sum}})
		}
	}
	add(wire.ReceiptSubjectRequest, r.Attested.Request.Digest)
	add(wire.ReceiptSubjectPlan, r.Attested.PlanDigest)
	if reported := r.ReportedByAgent; reported != nil {
		add(wire.ReceiptSubjectReport, reported.ReportDigest)
	}
	return all
}

// Seal signs a statement and returns the envelope, as compact JSON.
func Seal(ctx context.Context, statement []byte, key *Key) (string, error) {
	signer, err := dsse.NewEnvelopeSigner(key)
	if err != nil {
		return "", fmt.Errorf("sign receipt: %w", err)
	}
	envelope, err := signer.SignPayload(ctx, wire.ReceiptPayloadType, statement)
	if err != nil {
		return "", fmt.Errorf("sign receipt: %w", err)
	}
	content, err := json.Marshal(envelope)
	if err != nil {
		return "", fmt.Errorf("encode envelope: %w", err)
	}
	return string(content), nil
}
