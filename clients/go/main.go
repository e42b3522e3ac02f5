// A worked call: may Cat edit the project Web? Ask it of the service that `make run` starts, with
// AUTHZ_ADDRESS and AUTHZ_CREDENTIAL set.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	pb "authz/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

func main() {
	conn, err := grpc.NewClient(os.Getenv("AUTHZ_ADDRESS"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+os.Getenv("AUTHZ_CREDENTIAL"))
	acme, err := pb.NewOrganizationServiceClient(conn).GetOrganization(ctx, &pb.GetOrganizationRequest{
		Organization: &pb.GetOrganizationRequest_ExternalId{ExternalId: "acme"}})
	if err != nil {
		log.Fatal(err)
	}
	cat, err := pb.NewUserServiceClient(conn).GetUser(ctx, &pb.GetUserRequest{
		User: &pb.GetUserRequest_ExternalId{ExternalId: "cat"}})
	if err != nil {
		log.Fatal(err)
	}
	org := acme.Organization.Id
	answer, err := pb.NewAuthorizationServiceClient(conn).Check(ctx, &pb.CheckRequest{
		Subject:        &pb.Subject{Subject: &pb.Subject_User{User: &pb.UserInOrganization{UserId: cat.User.Id, OrganizationId: org}}},
		PermissionSlug: "project:edit",
		Resource: &pb.ResourceRef{Resource: &pb.ResourceRef_Key{Key: &pb.ResourceKey{
			OrganizationId: org, ResourceTypeSlug: "project", ExternalId: "web"}}},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.Allowed)
}
